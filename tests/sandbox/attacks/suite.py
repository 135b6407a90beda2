"""All attacks, by name."""

from tests.sandbox.attacks import channels, files, kernel, memory, network, processes, state

ATTACKS = [attack for part in (processes, memory, files, network, kernel, channels, state) for attack in part.ATTACKS]
assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
