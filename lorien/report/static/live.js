// Asks for the progress of a run again and again, as long as the page is open; what is not reached is asked again later.
"use strict";
(() => {
  const PAGE = 50, EVERY_MS = 2000, AWAY_MS = 5000, OVER_MS = 30000;
  const ORDER = ["lapsed", "leased", "failed", "set_aside", "waiting", "cancelled", "done"];
  const NAMES = { leased: "being tuned", set_aside: "set aside", lapsed: "lease lapsed" };
  // Out of the address bar and the history, and still there when the page is loaded again.
  if (location.hash.length > 1) sessionStorage.setItem("token", location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
  const token = sessionStorage.getItem("token") || "";
  const jobs = new Map();
  let look = 0, page = 0, view = null;

  const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString();
  const minutes = (seconds) => seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400
    ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;

  function trouble(message) {
    $("trouble").hidden = !message;
    if ($("trouble").textContent !== (message || "")) $("trouble").textContent = message || "";
  }

  async function ask() {
    let next = EVERY_MS;
    try {
      const answer = await fetch(`progress?since=${look}`, { headers: { Authorization: `Bearer ${token}` } });
      if (answer.status === 401 || answer.status === 403) {
        trouble("This page has no token, or that of an earlier start. Open the address that lorien jobs --serve printed.");
        return;
      }
      if (!answer.ok) throw new Error(`it answered ${answer.status}`);
      const told = await answer.json();
      show(told);
      next = told.over ? OVER_MS : EVERY_MS;
    } catch (error) {
      trouble(`lorien jobs --serve is not reached (${error.message}). What is shown was seen before; asking again.`);
      next = AWAY_MS;
    }
    setTimeout(ask, next);
  }

  function show(told) {
    look = told.look;
    for (const job of told.jobs) jobs.set(job.number, job);
    trouble(told.away
      ? `The database has been away since ${clock(told.away.since_s)}: ${told.away.message} What is shown is of ${clock(told.seen_s)}.`
      : "");
    document.title = `${told.counts.done}/${told.total} ${told.run}`;
    $("title").textContent = `Run ${told.run}`;
    $("about").textContent = `${told.targets.join(", ")}; started ${new Date(1000 * told.created_s).toLocaleString()}; ` +
      `seen ${clock(told.seen_s)}${told.over ? "; all jobs are over" : ""}`;
    const failed = told.counts.failed + told.counts.cancelled + told.counts.set_aside;
    const [done, bad] = $("meter").children;
    done.style.width = `${100 * told.counts.done / Math.max(1, told.total)}%`;
    bad.style.width = `${100 * failed / Math.max(1, told.total)}%`;
    $("meter").setAttribute("aria-valuenow", Math.round(100 * (told.counts.done + failed) / Math.max(1, told.total)));
    const left = told.trials_per_min > 0 && !told.over ? 60 * (told.trials_wanted - told.trials) / told.trials_per_min : null;
    const facts = [["jobs done", `${count(told.counts.done)} of ${count(told.total)}`], ["being tuned", count(told.counts.leased)],
      ["waiting", count(told.counts.waiting)], ["failed", count(failed)],
      ["trials", `${count(told.trials)} of ${count(told.trials_wanted)}`],
      ["trials a minute", told.trials_per_min === null ? "–" : told.trials_per_min.toFixed(1)],
      ["time left", left === null ? "–" : `about ${minutes(Math.max(0, left))}`]];
    $("facts").replaceChildren(...facts.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    const rows = told.history.map(([seconds, trials]) => ({ time: 1000 * seconds, trials }));
    if (rows.length > 1) {
      if (view === null) view = plot($("trials"), { ...data.charts.trials, data: { name: "rows", values: rows } });
      else view.then((drawn) => drawn.data("rows", rows).resize().runAsync());
    }
    draw();
  }

  function draw() {
    const words = $("words").value.toLowerCase().split(/\s+/).filter(Boolean), status = $("status").value;
    const rows = [...jobs.values()].filter((job) => (status === "" || job.status === status) &&
      words.every((word) => `${job.name} ${job.target} ${job.worker}`.toLowerCase().includes(word)));
    rows.sort((a, b) => ORDER.indexOf(a.status) - ORDER.indexOf(b.status) || a.number - b.number);
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    page = Math.min(page, pages - 1);
    const number = (content) => element("td", { class: "number" }, content);
    $("rows").replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map((job) => element("tr", {},
      number(String(job.number)),
      named(job.name, job.target, null),
      element("td", { class: `status-${job.status}` }, NAMES[job.status] || job.status,
        job.error ? element("small", {}, job.error) : null),
      number(count(job.trials)), number(latency(job.best_s)), number(rate(job.gflops)), number(String(job.tries)),
      element("td", {}, element("small", {}, job.worker)))));
    $("shown").textContent = `${count(rows.length)} of ${count(jobs.size)} jobs, page ${page + 1} of ${pages}`;
    $("before").disabled = page === 0;
    $("after").disabled = page === pages - 1;
  }

  for (const [id, step] of [["before", -1], ["after", 1]]) $(id).addEventListener("click", () => { page += step; draw(); });
  for (const id of ["words", "status"]) $(id).addEventListener("input", () => { page = 0; draw(); });
  ask();
})();
