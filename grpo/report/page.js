// Lays out the page from its data: overview, curves, rollouts, config. The address after # holds the filters of the rollouts.

function writeAddress(filter) {
  const words = new URLSearchParams(Object.entries(filter).filter(([, value]) => value !== ""));
  history.replaceState(null, "", "#" + (words.size ? words : "rollouts"));
}

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(["step", "outcome", "verifier", "q", "task", "open"].map((name) => [name, words.get(name) ?? ""]));
}

function layOverview(page) {
  byId("status").textContent = page.status;
  const tiles = page.tiles.map(({ label, value, detail }) =>
    el("div", { class: "tile" }, el("span", { class: "label" }, label), el("b", {}, value), el("span", { class: "quiet" }, detail)));
  const facts = page.facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, ...visible(value))));
  const notes = page.notes.map((note) => el("li", {}, ...visible(note)));
  byId("overview").append(
    tiles.length ? el("div", { class: "tiles" }, ...tiles) : "",
    notes.length ? el("ul", { class: "notes" }, ...notes) : "",
    facts.length ? el("details", { class: "what" }, el("summary", {}, ...visible(page.headline)), el("dl", { class: "facts" }, ...facts)) : "");
}

function layCurves(page, open) {
  const board = new Board(page.sections, open), place = byId("curves");
  if (!page.sections.length) {
    place.append(el("h2", {}, "Curves"), el("p", { class: "nothing" }, "No metrics were logged yet."));
    return;
  }
  const smooth = el("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: 0, oninput: (event) => board.setSmooth(Number(event.target.value)) });
  const hint = page.rollouts ? "Point at a step to read every chart there; click to read its rollouts. On the keyboard: arrows, Enter." : "Point at a step to read every chart there. On the keyboard: arrows.";
  place.append(el("div", { class: "bar" }, el("p", { class: "quiet" }, hint), el("label", {}, "smooth", smooth)));
  for (const section of page.sections) {
    const grid = el("div", { class: "charts" }, ...section.charts.map((chart) => board.add(chart)));
    place.append(section.closed
      ? el("details", { class: "more-charts" }, el("summary", {}, `${section.title}: ${plural(section.charts.length, "metric")}`), grid)
      : el("section", {}, el("h2", {}, section.title), grid));
  }
  board.charts.forEach((chart) => chart.draw());
}

function layRollouts(page, groups) {
  const place = byId("rollouts");
  if (!page.rollouts) return null;
  place.hidden = false;
  place.append(el("h2", {}, "Rollouts"), el("p", { class: "quiet" }, page.rollouts));
  if (!groups.length) return null;
  const rollouts = new Rollouts(groups, place);
  const read = () => rollouts.set(readAddress(), { write: false });
  addEventListener("hashchange", read);
  read();
  return rollouts;
}

function layConfig(page) {
  const place = byId("config");
  const row = (cells) => el("tr", {}, el("th", { scope: "row" }, cells[0]), ...cells.slice(1).map((cell) => el("td", {}, ...visible(cell))));
  const table = (head, rows) =>
    el("div", { class: "wide", tabindex: 0 }, el("table", { class: "config" }, el("thead", {}, el("tr", {}, ...head.map((cell) => el("th", { scope: "col" }, ...visible(cell))))), el("tbody", {}, ...rows.map(row))));
  for (const { title, head, rows, closed } of page.tables) {
    const body = rows.length ? table(head, rows) : el("p", { class: "nothing" }, "Nothing.");
    if (!closed) {
      place.append(el("h2", {}, title), body);
      continue;
    }
    const search = el("input", { type: "search", placeholder: "part of a name or value", "aria-label": `search in: ${title}` });
    search.addEventListener("input", () => {
      for (const line of body.querySelectorAll("tbody tr")) line.hidden = !line.textContent.toLowerCase().includes(search.value.toLowerCase());
    });
    place.append(el("details", {}, el("summary", {}, title), el("p", {}, search), body));
  }
}

function layNavigation(page) {
  const parts = [["overview", "Overview"], ["curves", "Curves"], ...(page.rollouts ? [["rollouts", "Rollouts"]] : []), ["config", "Config"]];
  // Buttons, not links: what stands after # are the filters.
  byId("nav").append(...parts.map(([id, name]) => el("button", { type: "button", onclick: () => byId(id).scrollIntoView() }, name)));
}

async function main() {
  const page = JSON.parse(await unpacked("page-data"));
  layNavigation(page);
  layOverview(page);
  let rollouts = null;
  layCurves(page, (step) => {
    if (!rollouts) return;
    rollouts.set({ step: String(rollouts.steps[nearest(rollouts.steps, step)]), task: "" });
    byId("rollouts").scrollIntoView();
  });
  layConfig(page);
  byId("footer").textContent = page.footer;
  const groups = (await unpacked("rollout-data")).split("\n").filter(Boolean).map((line) => JSON.parse(line));
  rollouts = layRollouts(page, groups);
  if (rollouts && location.hash.length > 1) byId("rollouts").scrollIntoView();
  document.documentElement.dataset.ready = "yes";
}

main().catch((error) => {
  const fault = byId("fault");
  fault.hidden = false;
  fault.textContent = `This page could not be drawn: ${error}. It needs a browser of 2023 or later (DecompressionStream).`;
});
