// The table of workloads: sorted, filtered and cut into pages here, for thousands of rows in the document would be slow.
"use strict";
(() => {
  const body = $("rows");
  if (!body) return;
  const PAGE = 25;
  const columns = data.columns;
  const total = columns.name.length;
  const text = new Array(total);  // of a row, once it is looked for
  const wordsOf = (row) => text[row] ??= [columns.name[row], columns.key[row],
    ...columns.networks[row].map((network) => data.networks[network])].join(" ").toLowerCase();
  let shown = Int32Array.from({ length: total }, (_, row) => row);
  let page = 0, sorted = null, ascending = false, chosen = -1, steps = null;

  const cells = {
    name: (row) => named(columns.name[row],
      columns.networks[row].map((network) => data.networks[network]).join(", "), () => choose(row, true)),
    target: (row) => element("td", {}, data.targets[columns.target[row]]),
    calls: (row) => number(rate(columns.calls[row])),
    trials: (row) => number(count(columns.trials[row])),
    failed: (row) => number(columns.failed[row] ? count(columns.failed[row]) : "–"),
    best: (row) => number(latency(columns.best[row])),
    rate: (row) => number(rate(columns.rate[row])),
    share: (row) => number(percent(columns.share[row])),
    top1: (row) => number(percent(columns.top1[row])),
    top5: (row) => number(percent(columns.top5[row])),
  };
  const number = (content) => element("td", { class: "number" }, content);
  const headers = [...document.querySelectorAll("#workloads th[data-column]")];

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(page, pages - 1);
    body.replaceChildren(...Array.from(shown.subarray(page * PAGE, (page + 1) * PAGE), (row) =>
      element("tr", { "data-row": row, "aria-current": row === chosen ? "true" : null },
        ...headers.map((header) => cells[header.dataset.column](row)))));
    $("shown").textContent = `${count(shown.length)} of ${count(total)} workloads, page ${page + 1} of ${pages}`;
    $("before").disabled = page === 0;
    $("after").disabled = page === pages - 1;
  }

  function filter() {
    const words = $("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const target = $("target").value, network = $("network").value, only = $("only").value;
    const rows = [];
    for (let row = 0; row < total; row++) {
      if (target !== "" && columns.target[row] !== +target) continue;
      if (network !== "" && !columns.networks[row].includes(+network)) continue;
      if (only === "failed" && !columns.failed[row]) continue;
      if (only === "none" && columns.best[row] !== null) continue;
      if (only === "schedule" && !(row in data.schedules)) continue;
      if (words.every((word) => wordsOf(row).includes(word))) rows.push(row);
    }
    shown = Int32Array.from(rows);
    page = 0;
    sort();
  }

  function sort() {
    if (sorted !== null) {
      const values = sorted === "target" ? columns.target.map((target) => data.targets[target]) : columns[sorted];
      const order = typeof values.find((value) => value !== null) === "string"
        ? new Intl.Collator("en", { numeric: true }).compare : (a, b) => a - b;
      const way = ascending ? 1 : -1;
      shown.sort((a, b) => {
        const one = values[a], other = values[b];
        if (one === null || other === null) return (one === null) - (other === null) || a - b;  // what is not known is last
        return way * order(one, other) || a - b;
      });
    }
    draw();
  }

  for (const header of headers) {
    header.querySelector("button").addEventListener("click", () => {
      const column = header.dataset.column;
      ascending = sorted === column ? !ascending : column === "name" || column === "target" || column === "best";
      sorted = column;
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      page = 0;
      sort();
    });
  }

  function choose(row, move) {
    chosen = row;
    const schedule = data.schedules[row], target = data.targets[columns.target[row]];
    $("chosen").hidden = false;
    $("chosen-name").textContent = columns.name[row];
    $("chosen-about").textContent = `${columns.dialect[row]} · ${target} · ${columns.key[row]}`;
    const facts = [["best latency", latency(columns.best[row])], ["GFLOPS", rate(columns.rate[row])],
      ["trials", count(columns.trials[row])], ["failed", count(columns.failed[row])]];
    $("chosen-facts").replaceChildren(...facts.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    const kinds = Object.entries(columns.kinds[row] || {});
    $("chosen-kinds").textContent = kinds.length
      ? `Failed: ${kinds.map(([kind, n]) => `${count(n)} ${kind.replaceAll("_", " ")}`).join(", ")}.` : "";
    compare(row, target);
    $("trace").textContent = schedule ? schedule.text : "";
    $("trace").hidden = !schedule;
    $("trace-about").textContent = schedule
      ? [`${latency(schedule.best)}, measured with ${schedule.build}`, schedule.log && `log ${schedule.log}`].filter(Boolean).join("; ")
      : "The inputs of this page hold no schedule of this workload, or there was no room for it: give a database, a log " +
        "store or a session as well, or ask with lorien query --db URL --workload " + columns.key[row];
    const points = columns.steps[row], rows = [];
    for (let i = 0; i < points.length; i += 2) rows.push({ trial: points[i], latency: points[i + 1] });
    if (rows.length && columns.trials[row] > rows[rows.length - 1].trial) {
      rows.push({ trial: columns.trials[row], latency: rows[rows.length - 1].latency });
    }
    $("steps-card").hidden = rows.length < 2;
    if (rows.length > 1) {
      if (steps === null) steps = plot($("steps"), { ...data.charts.steps, data: { name: "rows", values: rows } });
      else steps.then((view) => chosen === row && view.data("rows", rows).resize().runAsync());
    }
    for (const line of body.children) {
      if (+line.dataset.row === row) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
    }
    if (move) {
      $("chosen").scrollIntoView({ block: "start" });
      $("chosen-name").focus({ preventScroll: true });
    }
  }

  function compare(row, target) {
    const own = columns.rate[row], peak = data.peaks[target], most = peak ? peak.gflops : data.fastest[target];
    $("meter-card").hidden = own === null;
    if (own === null) return;
    const share = Math.min(1, own / most);
    $("meter").style.width = `${100 * share}%`;
    $("meter-told").textContent = peak
      ? `${rate(own)} GFLOPS, ${percent(own / most)} of the peak of ${rate(most)} GFLOPS (${peak.how}).`
      : `${rate(own)} GFLOPS. The peak of ${target} is not known (--peak gives it, or measures it on this machine); ` +
        `the bar compares with ${rate(most)} GFLOPS, the fastest workload of this target here, which says nothing of the hardware.`;
  }

  for (const [id, step] of [["before", -1], ["after", 1]]) {
    $(id).addEventListener("click", () => { page += step; draw(); });
  }
  for (const id of ["words", "target", "network", "only"]) $(id).addEventListener("input", filter);
  filter();
})();
