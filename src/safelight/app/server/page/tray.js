// What is being developed: previews and a bar while it comes, the pictures when it is there, and who waits.

import { ask, make, note, pictureUrl } from "./api.js";

const $ = (id) => document.getElementById(id);

export class Tray {
  constructor({ open, example }) {
    Object.assign(this, { open, example });
    this.states = new Map(); // job -> its state when it was last seen
    this.finished = null; // the job whose pictures lie in the tray
  }

  // All jobs, as the server tells them. `done` is called for each that has just ended with pictures.
  show(jobs, done) {
    for (const job of jobs) {
      const before = this.states.get(job.id);
      if (before && before !== job.state) {
        if (job.state === "done") { this.finished = job; done(job); }
        if (job.state === "failed") note(Object.assign(new Error(job.error.what), { remedy: job.error.remedy }));
      }
      this.states.set(job.id, job.state);
    }
    this.finished ??= jobs.filter((job) => job.state === "done").at(-1) ?? null;
    const drawing = jobs.find((job) => job.state === "drawing");
    if (drawing) this.coming(drawing);
    else if (this.finished) this.there(this.finished);
    else this.empty();
    this.queue(jobs.filter((job) => job.state === "waiting"));
  }

  coming(job) {
    const sheets = sheetsOf(job.previews.length ? job.previews : []);
    sheets.classList.add("coming");
    for (const image of sheets.children) image.style.filter = `blur(${Math.round(8 * (1 - job.share))}px)`;
    const parts = [make("progress", { max: 1, value: job.share, "aria-label": "how far it is" }),
      make("div", { className: "line" }, make("span", {}, [saying(job), job.doing, left(job)].filter(Boolean).join(" · ")),
        make("button", { type: "button", disabled: job.stopping, onclick: () => stop(job) }, job.stopping ? "stopping…" : "Stop"))];
    $("tray").replaceChildren(...(job.previews.length ? [sheets] : []), ...parts);
    this.drawn = null;
  }

  there(job) {
    if (this.drawn === job.id) return; // or the pictures would blink with every event
    this.drawn = job.id;
    const sheets = sheetsOf(job.pictures.map(pictureUrl));
    [...sheets.children].forEach((image, k) => { image.onclick = () => this.open(job.pictures[k]); image.style.cursor = "zoom-in"; });
    const seconds = job.times.ended - job.times.begun;
    $("tray").replaceChildren(sheets, make("div", { className: "line" }, make("span", {}, `${saying(job)} · ${seconds.toFixed(1)} s`)));
  }

  empty() {
    if (this.drawn === "") return;
    this.drawn = "";
    const words = ["a 3D render of a red apple on a blue background", "a flat emoji of a dog on a white background",
      "a cartoon of a cat on a green background", "a gradient emoji of a grinning face on a yellow background"];
    $("tray").replaceChildren(make("div", { className: "empty" }, make("p", {}, "Nothing is developed yet. Say what you would like to see, or begin with one of these:"),
      make("div", { className: "examples" }, ...words.map((text) => make("button", { type: "button", onclick: () => this.example(text) }, text)))));
  }

  queue(waiting) {
    $("queue").replaceChildren(...waiting.map((job) => make("li", {}, make("b", {}, `${job.position}.`), make("span", {}, saying(job)),
      make("button", { type: "button", className: "quiet", "aria-label": "take it out", onclick: () => stop(job) }, "×"))));
  }
}

function sheetsOf(sources) {
  return make("div", { className: sources.length > 1 ? "sheets many" : "sheets" }, ...sources.map((src) => make("img", { src, alt: "" })));
}

const saying = (job) => job.request.prompt || job.request.label || job.task.replaceAll("_", " ");

function left(job) {
  if (job.share < 0.04 || job.share >= 1) return "";
  const gone = Date.now() / 1000 - job.times.begun;
  const seconds = gone / job.share * (1 - job.share);
  return seconds < 90 ? `${Math.ceil(seconds)} s left` : `${Math.ceil(seconds / 60)} min left`;
}

async function stop(job) {
  try { await ask(`/api/jobs/${job.id}`, { method: "DELETE" }); } catch (problem) { note(problem); }
}
