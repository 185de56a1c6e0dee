// The folder of pictures, and one of them looked at: how it was made, and what may be done with it.

import { ask, make, pictureUrl } from "./api.js";

const AT_ONCE = 60;
const SHOWN = ["prompt", "negative_prompt", "label", "boxes", "seed", "steps", "guidance_scale", "sampler", "grid", "strength", "width", "height"];
const $ = (id) => document.getElementById(id);

export class Gallery {
  constructor({ again, use }) {
    Object.assign(this, { again, use });
    this.names = [];
    $("older").onclick = () => this.older();
    const viewer = $("viewer");
    viewer.querySelector(".close").onclick = () => viewer.close();
    viewer.onclick = (event) => event.target === viewer && viewer.close();
    viewer.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = this.names[this.names.indexOf(this.current) + step];
      if (step && next) this.open(next);
    };
  }

  async refresh() {
    const newest = await ask(`/api/pictures?most=${AT_ONCE}`);
    this.names = [...newest, ...this.names.filter((name) => !newest.includes(name))];
    this.show();
  }

  async older() {
    const before = this.names.at(-1);
    const more = await ask(`/api/pictures?most=${AT_ONCE}&before=${encodeURIComponent(before)}`);
    this.names.push(...more);
    this.show(more.length === AT_ONCE);
  }

  show(more = this.names.length >= AT_ONCE) {
    const there = new Map([...$("gallery").children].map((child) => [child.name, child]));
    $("gallery").replaceChildren(...this.names.map((name) => there.get(name) ?? make("button", { type: "button", name, title: name, onclick: () => this.open(name) },
      make("img", { src: pictureUrl(name), alt: name, loading: "lazy" }))));
    $("older").hidden = !more;
  }

  async open(name) {
    this.current = name;
    const viewer = $("viewer");
    viewer.querySelector("img").src = pictureUrl(name);
    viewer.querySelector("h2").textContent = name;
    const does = (label, act) => make("button", { type: "button", onclick: () => { viewer.close(); act(); } }, label);
    const buttons = [does("Redraw", () => this.use("image_to_image", name)), does("Inpaint", () => this.use("inpaint", name)),
      does("Outpaint", () => this.use("outpaint", name)), does("Upscale", () => this.use("upscale", name)),
      make("a", { href: pictureUrl(name), download: name, className: "button" }, "Download")].filter((one) => one.tagName === "A" || this.can(one.textContent));
    viewer.querySelector(".buttons").replaceChildren(...buttons);
    viewer.querySelector("table").replaceChildren();
    if (!viewer.open) viewer.showModal();
    try {
      const made = await ask(`/api/pictures/${encodeURIComponent(name)}`);
      if (this.current !== name) return;
      viewer.querySelector("table").replaceChildren(...facts(made));
      viewer.querySelector(".buttons").prepend(does("Same settings", () => this.again(made)));
    } catch (problem) { viewer.querySelector("table").replaceChildren(row("", problem.message)); }
  }
}

function facts(made) {
  const request = made.request;
  const rows = SHOWN.filter((name) => request[name] !== undefined && request[name] !== null && request[name] !== "").map((name) => row(name, request[name]));
  return [row("task", made.task), ...rows, row("model", made.model.name), row("written by", made.program), ...made.remarks.map((text) => row("remark", text))];
}

const row = (name, value) => make("tr", {}, make("th", {}, String(name).replaceAll("_", " ")), make("td", {}, String(value ?? "")));
