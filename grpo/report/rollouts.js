// The browser of rollouts: filters, the list of groups, one group with its completions side by side, a prompt across steps.

const LISTED = 100;

class Rollouts {
  constructor(groups, place) {
    this.groups = groups;
    this.filter = { step: "", outcome: "", verifier: "", q: "", task: "", open: "" };
    this.listed = LISTED;
    this.steps = [...new Set(groups.map((group) => group.step))];
    this.byTask = new Map();
    for (const group of groups) {
      group.id = `${group.step}.${group.position}`;
      group.prompt = asTalk(group.prompt);
      this.byTask.set(group.task, [...(this.byTask.get(group.task) || []), group]);
    }
    this.lay(place);
  }

  lay(place) {
    const scores = this.groups.flatMap((group) => group.completions.flatMap((completion) => completion.scores));
    const verifiers = [...new Set(scores.map((score) => score.verifier))].sort();
    const outcomes = OUTCOMES.filter((outcome) => scores.some((score) => score.outcome === outcome));
    const choice = (name, label, values) => {
      const options = values.map(([value, text]) => el("option", { value }, text));
      return el("label", {}, label, el("select", { name }, ...options));
    };
    const many = this.groups.flatMap((group) => group.completions);
    const whole = [["verdict:correct", "correct as a whole"], ["verdict:not", "not correct as a whole"], ["verdict:unscored", "unscored"], ["ended:length", "ran out of tokens"]]
      .filter(([value]) => many.some((completion) => this.isOutcome(completion, value, "")));
    this.form = el("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      choice("step", "step", [["", `all ${this.steps.length}`], ...this.steps.map((step) => [String(step), String(step)])]),
      choice("outcome", "outcome", [["", "any"], ...outcomes.map((outcome) => [outcome, outcome]), ...whole]),
      choice("verifier", "verifier", [["", "any"], ...verifiers.map((verifier) => [verifier, verifier])]),
      el("label", { class: "grow" }, "text", el("input", { type: "search", name: "q", placeholder: "in prompts, completions, reasons", spellcheck: "false" })),
      el("button", { type: "button", onclick: () => this.set({ step: "", outcome: "", verifier: "", q: "", task: "" }) }, "Clear"));
    this.form.addEventListener("input", (event) => {
      clearTimeout(this.typing);
      const wait = event.target.name === "q" ? 150 : 0;
      this.typing = setTimeout(() => this.set({ [event.target.name]: event.target.value }), wait);
    });
    this.count = el("p", { class: "count", role: "status" });
    this.list = el("ol", { class: "groups" });
    this.detail = el("div", { class: "detail", "aria-live": "off" });
    place.append(this.form, this.count, el("div", { class: "browser" }, this.list, this.detail));
  }

  // Change some of the filters; the address says what is shown, so that it can be sent to somebody.
  set(changes, { write = true } = {}) {
    if (!("open" in changes)) changes.open = "";
    Object.assign(this.filter, changes);
    this.listed = LISTED;
    for (const [name, value] of Object.entries(this.filter)) if (this.form.elements[name] && this.form.elements[name].value !== value) this.form.elements[name].value = value;
    if (write) writeAddress(this.filter);
    this.find();
    this.show();
  }

  isOutcome(completion, outcome, verifier) {
    if (outcome === "verdict:correct") return completion.correct;
    if (outcome === "verdict:not") return !completion.correct && completion.reward !== null;
    if (outcome === "verdict:unscored") return completion.reward === null;
    if (outcome === "ended:length") return completion.finish === "length";
    return completion.scores.some((score) => (!verifier || score.verifier === verifier) && (!outcome || score.outcome === outcome));
  }

  find() {
    const { step, outcome, verifier, q, task } = this.filter, words = q.toLowerCase();
    const has = (text) => text !== null && text.toLowerCase().includes(words);
    this.found = [];
    for (const group of this.groups) {
      if ((step && group.step !== Number(step)) || (task && group.task !== task)) continue;
      const everywhere = !words || has(group.prompt) || has(group.task) || has(group.reference);
      const matching = group.completions.filter((completion) =>
        ((!outcome && !verifier) || this.isOutcome(completion, outcome, verifier)) &&
        (everywhere || has(completion.text) || completion.scores.some((score) => has(score.reason) || has(score.extracted))));
      if (matching.length) this.found.push({ group, matching: new Set(matching) });
    }
  }

  show() {
    const num = this.found.reduce((sum, { matching }) => sum + matching.size, 0);
    const task = this.filter.task && el("button", { type: "button", class: "chip", onclick: () => this.set({ task: "" }) }, ...visible(`only prompt ${this.filter.task}`), " \u00d7");
    this.count.replaceChildren(`${plural(num, "completion")} in ${this.found.length.toLocaleString("en")} of ${plural(this.groups.length, "group")} `, task || "");
    const opened = this.found.find(({ group }) => group.id === this.filter.open) || this.found[0];
    this.fillList(opened);
    this.detail.replaceChildren(...(opened ? this.detailOf(opened) : [el("p", { class: "nothing" }, "Nothing here matches. Clear a filter.")]));
  }

  fillList(opened) {
    const items = this.found.slice(0, this.listed).map((found) => this.itemOf(found, found === opened));
    if (this.found.length > this.listed) {
      const more = () => ((this.listed += 4 * LISTED), this.fillList(opened));
      items.push(el("li", {}, el("button", { type: "button", class: "more", onclick: more }, `show more of ${plural(this.found.length, "group")}`)));
    }
    this.list.replaceChildren(...items);
  }

  itemOf({ group, matching }, isOpen) {
    const open = () => {
      this.set({ open: group.id });
      this.list.querySelector("[aria-current=true]")?.focus();
    };
    return el("li", {}, el("button", { type: "button", "aria-current": String(isOpen), onclick: open },
      el("span", { class: "where" }, `step ${group.step}`, el("span", { class: "share" }, rightOf(group))),
      el("span", { class: "prompt" }, ...visible(firstLine(group.prompt))),
      strip(group, matching)));
  }

  detailOf({ group, matching }) {
    const others = group.completions.filter((completion) => !matching.has(completion));
    const cards = el("div", { class: "cards" }, ...[...matching].map((completion) => this.card(completion)));
    const rest = others.length
      ? el("details", { class: "others", ontoggle: (event) => event.target.childElementCount < 2 && event.target.append(el("div", { class: "cards" }, ...others.map((completion) => this.card(completion)))) },
          el("summary", {}, `${plural(others.length, "other completion")} of this group`))
      : null;
    const facts = [["task", group.task], ["reference", group.reference], ["judged by", group.rewards], ["right", rightOf(group)], ["mean reward", meanReward(group)]];
    return [
      el("h3", {}, `Step ${group.step}, `, ...visible(`prompt ${group.task}`)),
      this.timeline(group),
      el("pre", { class: "text prompt-text", tabindex: 0, "aria-label": "prompt", dir: "auto" }, ...marked(group.prompt, this.filter.q)),
      el("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, ...marked(value, name === "reference" || name === "task" ? this.filter.q : ""))])),
      cards, ...(rest ? [rest] : [])];
  }

  // The same prompt at every step where it was sampled, with what became of it.
  timeline(group) {
    const same = this.byTask.get(group.task);
    if (same.length < 2) return el("p", { class: "quiet" }, "This prompt is here at this step alone.");
    const steps = same.map((one) => el("button", { type: "button", "aria-current": String(one === group), title: `step ${one.step}: ${rightOf(one)} right`,
      onclick: () => this.set({ task: group.task, step: "", outcome: "", verifier: "", q: "", open: one.id }) },
      el("span", {}, `step ${one.step}`), strip(one, null), el("span", { class: "share" }, rightOf(one))));
    const follow = this.filter.task
      ? null
      : el("button", { type: "button", class: "follow", onclick: () => this.set({ task: group.task, step: "", outcome: "", verifier: "", q: "", open: group.id }) }, "Follow this prompt");
    return el("div", { class: "timeline", role: "group", "aria-label": "this prompt across steps" }, ...steps, follow);
  }

  card(completion) {
    const verdict = completion.reward === null ? "unscored" : completion.correct ? "correct" : "not correct";
    const ended = completion.finish === "length" ? "ran out of tokens" : "stopped by itself";
    const table = el("table", { class: "scores" }, el("tbody", {}, ...completion.scores.map((score) =>
      el("tr", {}, el("th", { scope: "row" }, score.verifier),
        el("td", {}, el("span", { class: `badge ${OUTCOMES.includes(score.outcome) ? score.outcome : ""}` }, score.outcome)),
        el("td", { class: "number" }, score.value === null ? "-" : trimmed(score.value, 3)),
        el("td", { class: "reason" }, ...marked(score.reason, this.filter.q),
          score.extracted === null ? null : el("span", { class: "extracted", title: "the part that was judged" }, ...marked(short(score.extracted), this.filter.q)))))));
    const cause = completion.cause === null ? null : el("p", { class: "cause" }, ...visible(completion.cause));
    return el("article", { class: "card", "aria-label": `completion ${completion.index}, ${verdict}` },
      el("header", {}, el("b", { class: `verdict ${completion.reward === null ? "infra" : completion.correct ? "correct" : "wrong"}` }, verdict),
        el("span", {}, completion.reward === null ? "no reward" : `reward ${trimmed(completion.reward, 3)}`),
        el("span", { class: "quiet" }, `#${completion.index}, ${plural(completion.tokens ?? 0, "token")}, ${ended}, policy ${completion.version}`)),
      cause, table,
      el("pre", { class: "text", tabindex: 0, "aria-label": `text of completion ${completion.index}`, dir: "auto" }, ...marked(completion.text, this.filter.q)));
  }
}

// A conversation is stored as JSON: shown turn by turn.
function asTalk(prompt) {
  if (!prompt.startsWith('[{"role"')) return prompt;
  try {
    return JSON.parse(prompt).map((turn) => `${turn.role}: ${turn.content}`).join("\n\n");
  } catch {
    return prompt; // it only looks like one, or its middle was left out
  }
}

function short(text) {
  return text.length > 300 ? text.slice(0, 300) + "..." : text;
}

function firstLine(prompt) {
  const line = prompt.trim().split("\n").at(-1);
  return line.length > 120 ? line.slice(0, 120) + "..." : line;
}

function rightOf(group) {
  const scored = group.completions.filter((completion) => completion.reward !== null);
  return `${scored.filter((completion) => completion.correct).length}/${scored.length}`;
}

function meanReward(group) {
  const rewards = group.completions.map((completion) => completion.reward).filter((reward) => reward !== null);
  return rewards.length ? trimmed(rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length, 3) : "none scored";
}

// One mark for each completion: full when correct, open when not, dashed when unscored; pale when the filter leaves it out.
function strip(group, matching) {
  const marks = group.completions.map((completion) => {
    const kind = completion.reward === null ? "lost" : completion.correct ? "right" : "not";
    return el("i", { class: kind + (matching && !matching.has(completion) ? " pale" : "") });
  });
  return el("span", { class: "strip", role: "img", "aria-label": `${rightOf(group)} right` }, ...marks);
}
