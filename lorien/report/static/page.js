// What every page shares: its data, numbers for people, and plots that are drawn when they come into view.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.map((child) => (child === null ? "" : child)));
  return made;
}

function latency(seconds) {
  if (seconds === null) return "–";
  for (const [unit, factor] of [["s", 1], ["ms", 1e3], ["µs", 1e6]]) {
    if (seconds * factor >= 1) return `${+(seconds * factor).toPrecision(3)} ${unit}`;
  }
  return `${+(seconds * 1e9).toPrecision(3)} ns`;
}
const numbers = new Intl.NumberFormat("en");
const count = (value) => numbers.format(value);
const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);
const rate = (value) => (value === null ? "–" : value >= 100 ? count(Math.round(value)) : `${+value.toPrecision(3)}`);

// A workload's cell: its operators, and below them the shapes, where the name has them, and what else is to be told.
function named(name, about, open) {
  const [, operators, shapes] = name.match(/^([^(]+)\((.*)\)$/s) || [null, name, ""];
  const words = operators.split(/(?<=\+)/).flatMap((word) => [word, document.createElement("wbr")]);
  const title = open ? element("button", { type: "button", class: "link", "aria-label": name }, ...words)
    : element("span", {}, ...words);
  if (open) title.addEventListener("click", open);
  return element("td", { class: "name" }, title,
    element("small", { class: "shapes" }, shapes.replace(/,(?=\S)/g, ", ")), element("small", {}, about));
}

function plot(place, spec) {
  // The interpreter in place of compiled expressions: the page allows no code but its own.
  const options = { ast: true, renderer: "svg", actions: false, defaultStyle: false, mode: "vega-lite",
    tooltip: { disableDefaultStyle: true } };
  return vegaEmbed(place, spec, options).then((drawn) => drawn.view);
}

// What is typed is used at once; nothing is sent.
for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());

// When there is nothing else to do: what is typed or pressed meanwhile goes first. Not every browser can tell.
const idle = window.requestIdleCallback || ((work) => setTimeout(work));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    idle(() => plot(entry.target, data.charts[entry.target.dataset.chart]), { timeout: 2000 });
  }
}, { rootMargin: "200px" });
for (const place of document.querySelectorAll("[data-chart]")) seen.observe(place);
