"use strict";
// A figure names CSS variables for its colours; they become colours here, again with every change.
const root = document.documentElement;
const css = name => getComputedStyle(root).getPropertyValue(name).trim();

function tinted(part) {
  if (Array.isArray(part)) return part.map(tinted);
  if (part && typeof part === "object") return Object.fromEntries(Object.entries(part).map(([name, inner]) => [name, tinted(inner)]));
  const found = typeof part === "string" && /^var\(--(band-)?([a-z0-9-]+)\)$/.exec(part);
  return !found ? part : found[1] ? css("--model-" + found[2]) + "30" : css("--" + found[2]);
}

function draw(box) {
  const figure = tinted(JSON.parse(box.previousElementSibling.textContent));
  const ink = css("--ink"), muted = css("--muted"), line = css("--line"), ground = css("--ground");
  const layout = {
    width: box.clientWidth, height: box.clientHeight, margin: {l: 8, r: 14, t: 14, b: 8},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false, hovermode: "closest",
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: ink},
    hoverlabel: {bgcolor: ground, bordercolor: muted, font: {color: ink}, align: "left"},
    ...figure.layout,
  };
  for (const side of ["xaxis", "yaxis"])
    layout[side] = {automargin: true, fixedrange: true, gridcolor: line, zerolinecolor: line, tickcolor: line, ...layout[side]};
  for (const note of layout.annotations || []) { note.font.color = muted; note.bgcolor = ground; note.borderpad = 1; }
  for (const shape of layout.shapes || []) shape.line.color = line;
  box.drawnAt = box.clientWidth;
  Plotly.react(box, figure.data, layout, {displayModeBar: false, showTips: false, typesetMath: false, plotlyServerURL: ""})
    .then(() => { box.dataset.drawn = ""; });
}

const boxes = [...document.querySelectorAll(".chart")];
const all = () => boxes.forEach(draw);
const widths = new ResizeObserver(seen => seen.forEach(({target}) => { if (target.clientWidth !== target.drawnAt) draw(target); }));
boxes.forEach(box => widths.observe(box));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);

// On paper: light, as wide as a page, with all that is folded away.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach(one => { one.open = true; });
  root.classList.add("printing");
  all();
});
addEventListener("afterprint", () => {
  folded.forEach(one => { one.open = false; });
  root.classList.remove("printing");
  all();
});
