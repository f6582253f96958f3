"use strict";
// The figures under the pointer, or one by one with the arrow keys.
function addHover(figure) {
  const plot = figure.querySelector(".plot");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const places = [...new Set(data.curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  if (!places.length) return;
  let at = -1;
  const percent = (x) => 100 * (x - data.low) / (data.high - data.low);
  const nearest = (list, x) => {
    let low = 0, high = list.length - 1;
    while (low < high) { const middle = (low + high) >> 1; if (list[middle] < x) low = middle + 1; else high = middle; }
    return low > 0 && x - list[low - 1] < list[low] - x ? low - 1 : low;
  };
  const make = (name, text) => { const made = document.createElement("div"); made.className = name; made.textContent = text || ""; return made; };
  const hide = () => { plot.querySelectorAll(".cross, .ring, .tip").forEach((one) => one.remove()); };
  const show = (index) => {
    hide();
    at = index;
    const x = places[at], left = percent(x), cross = make("cross"), tip = make("tip");
    cross.style.left = `${left}%`;
    tip.append(make("soft", `${data.x} ${x.toLocaleString("en", { maximumFractionDigits: 6 })}`));
    data.curves.forEach((curve, number) => {
      const one = curve.x.length ? nearest(curve.x, x) : -1;
      if (one < 0 || curve.x[one] !== x) return;
      const row = document.createElement("div"), ring = make(`ring k${number % 7}`);
      const name = document.createElement("span"), value = document.createElement("b");
      name.textContent = curve.name; name.className = `of k${number % 7}`; value.textContent = curve.y[one];
      row.append(name, value); tip.append(row);
      ring.style.left = `${left}%`; ring.style.top = `${curve.top[one]}%`;
      plot.append(ring);
    });
    if (left > 55) tip.style.right = `calc(${100 - left}% + 12px)`; else tip.style.left = `calc(${left}% + 12px)`;
    plot.append(cross, tip);
  };
  const follow = (event) => {
    const box = plot.getBoundingClientRect();
    show(nearest(places, data.low + (event.clientX - box.left) / box.width * (data.high - data.low)));
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    show(Math.min(places.length - 1, Math.max(0, at < 0 ? places.length - 1 : at + step)));
  });
}

function tellAges() {
  for (const time of document.querySelectorAll("time[data-ago]")) {
    const seconds = Math.max(0, (Date.now() - Date.parse(time.dateTime)) / 1000);
    const [size, unit] = seconds < 120 ? [1, "s"] : seconds < 7200 ? [60, "min"] : seconds < 172800 ? [3600, "h"] : [86400, "d"];
    time.title = time.title || time.textContent;
    time.textContent = `${Math.floor(seconds / size)} ${unit} ago`;
  }
}

function dress() {
  document.querySelectorAll(".chart").forEach(addHover);
  tellAges();
}

// A live page asks for itself again, and takes over what is new, unless somebody is reading a figure off it.
function live(seconds) {
  const ask = async () => {
    if (!document.hidden) {
      const link = document.querySelector("#link");
      try {
        const answer = await fetch(location.href, { cache: "no-cache" });
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const main = document.querySelector("main"), fresh = page.querySelector("main");
        if (fresh.dataset.version !== main.dataset.version && !document.querySelector(".tip")) {
          main.replaceWith(fresh);
          document.title = page.title;
          dress();
        }
        link.textContent = "live";
      } catch {
        link.textContent = "not connected: what is shown may be old";
      }
    }
    setTimeout(ask, 1000 * seconds);
  };
  setTimeout(ask, 1000 * seconds);
}

dress();
setInterval(tellAges, 1000);
if (document.body.dataset.live) live(Number(document.body.dataset.live));
