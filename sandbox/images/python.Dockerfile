# The root of the image where a registry is reachable. Only Debian comes from it, so that Python and its modules are the same as where
# none is: the packages, then images/shrink_root.py. `grpo sandbox build` sends /build and /opt/grpo along as build.tar.
ARG SUITE
FROM debian:${SUITE}-slim
ARG PACKAGES
ARG EXTRA
ARG MIRROR
RUN if [ -n "$MIRROR" ]; then find /etc/apt -name '*.list' -o -name '*.sources' | xargs sed -i "s|http://deb.debian.org/debian\b|$MIRROR|g"; fi \
    && apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $PACKAGES $EXTRA
ADD build.tar /
RUN python3 -I -S -B /build/shrink_root.py $EXTRA
