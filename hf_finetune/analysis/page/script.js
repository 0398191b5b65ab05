"use strict";
// The switch of dark mode: follows the system until it is pressed. A page that may not store anything forgets it.
const root = document.documentElement, button = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const showTheme = () => { button.setAttribute("aria-pressed", isDark()); button.textContent = isDark() ? "Light" : "Dark"; };
try { const kept = localStorage.getItem("hf-finetune-theme"); if (kept) root.dataset.theme = kept; } catch { /* no storage */ }
system.addEventListener("change", showTheme);
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("hf-finetune-theme", root.dataset.theme); } catch { /* no storage */ }
  showTheme();
});
showTheme();

// The values of a chart at the update under the pointer, or at the one that the arrow keys chose
for (const plot of document.querySelectorAll(".plot[data-lines]")) {
  const lines = JSON.parse(plot.dataset.lines), labels = JSON.parse(plot.dataset.labels);
  const low = Number(plot.dataset.low), high = Number(plot.dataset.high);
  const area = plot.querySelector(".area"), cursor = plot.querySelector(".cursor"), tip = plot.querySelector(".tip");
  const updates = [...new Set(lines.flatMap((points) => points.map((point) => point[0])))].sort((a, b) => a - b);
  let chosen = updates.length - 1;
  const show = (index) => {
    chosen = Math.max(0, Math.min(updates.length - 1, index));
    const update = updates[chosen], share = (update - low) / (high - low), texts = [`update ${update.toLocaleString("en")}`];
    lines.forEach((points, number) => {
      const point = points.find((candidate) => candidate[0] === update);
      if (point) texts.push(`${labels[number]}  ${point[1].toPrecision(4)}`);
    });
    tip.textContent = texts.join("\n");
    tip.hidden = false;
    for (const name of ["x1", "x2"]) cursor.setAttribute(name, `${100 * share}%`);
    cursor.classList.add("shown");
    const place = share * area.clientWidth, width = tip.offsetWidth;
    tip.style.left = `${Math.max(0, place > area.clientWidth / 2 ? place - width - 10 : Math.min(place + 10, area.clientWidth - width))}px`;
  };
  const hide = () => { tip.hidden = true; cursor.classList.remove("shown"); };
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect(), update = low + (high - low) * (event.clientX - box.left) / box.width;
    let nearest = 0;
    updates.forEach((value, index) => { if (Math.abs(value - update) < Math.abs(updates[nearest] - update)) nearest = index; });
    show(nearest);
  });
  area.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(chosen); });
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const target = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: updates.length - 1 }[event.key];
    if (target !== undefined) { event.preventDefault(); show(target); }
    if (event.key === "Escape") hide();
  });
}
