"use strict";
// A viewer has one zoom for all its slices: by how much it is enlarged, and where its upper left corner is, in pixels.
for (const viewer of document.querySelectorAll(".viewer")) {
  const view = viewer.querySelector(".view"), slices = viewer.querySelectorAll(".slice");
  const length = viewer.querySelector(".length"), words = viewer.querySelector(".words");
  let zoom = 1, left = 0, top = 0;

  function place(x, y) {
    left = Math.min(0, Math.max(view.clientWidth * (1 - zoom), x));
    top = Math.min(0, Math.max(view.clientHeight * (1 - zoom), y));
    view.style.setProperty("--zoom", zoom);
    view.style.setProperty("--left", left + "px");
    view.style.setProperty("--top", top + "px");
    const most = viewer.dataset.span / zoom / 5, power = 10 ** Math.floor(Math.log10(most));
    const bar = power * [5, 2, 1].find((factor) => factor * power <= most * (1 + 1e-9));
    length.style.width = (100 * bar * zoom) / viewer.dataset.span + "%";
    words.textContent = Number(bar.toPrecision(3)) + " " + viewer.dataset.unit;
  }
  function enlarge(factor, x = view.clientWidth / 2, y = view.clientHeight / 2) {
    const before = zoom;
    zoom = factor ? Math.min(16, Math.max(1, zoom * factor)) : 1;
    place(x - ((x - left) * zoom) / before, y - ((y - top) * zoom) / before);
  }

  for (const button of viewer.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      if (button.dataset.zoom) return enlarge(Number(button.dataset.zoom));
      viewer.dataset.show = button.dataset.show;
      for (const other of viewer.querySelectorAll("button[data-show]"))
        other.setAttribute("aria-pressed", String(other === button));
    });
  }
  viewer.querySelector(".cut").addEventListener("input", (event) => {
    view.style.setProperty("--cut", event.target.value + "%");
  });
  const pick = viewer.querySelector(".pick");
  if (pick) {
    const names = pick.dataset.names.split("|");
    pick.addEventListener("input", () => {
      slices.forEach((slice, index) => { slice.hidden = index !== Number(pick.value); });
      viewer.querySelector("output").textContent = names[pick.value];
    });
  }
  view.addEventListener("wheel", (event) => {
    if (document.activeElement !== view && !event.ctrlKey) return;
    event.preventDefault();
    const box = view.getBoundingClientRect();
    enlarge(event.deltaY < 0 ? 1.25 : 0.8, event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  view.addEventListener("pointerdown", (event) => {
    view.focus({ preventScroll: true });
    if (zoom > 1) view.setPointerCapture(event.pointerId);
  });
  view.addEventListener("pointermove", (event) => {
    if (view.hasPointerCapture(event.pointerId)) place(left + event.movementX, top + event.movementY);
  });
  view.addEventListener("keydown", (event) => {
    const step = view.clientWidth / 10;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    const zooms = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 };
    if (event.ctrlKey || event.metaKey) return;
    if (event.key in zooms) enlarge(zooms[event.key]);
    else if (event.key in moves && zoom > 1) place(left + moves[event.key][0], top + moves[event.key][1]);
    else return;
    event.preventDefault();
  });
}
