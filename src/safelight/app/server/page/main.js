// The page: one form, one tray, one gallery. All that lasts is with the server, so that a page may be closed at any time.

import { asData, ask, make, note } from "./api.js";
import { asCurl, asPython, asShell } from "./copying.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { Tray } from "./tray.js";

const LABELS = { text_to_image: "Draw", image_to_image: "Redraw", inpaint: "Inpaint", outpaint: "Outpaint", variations: "Variations",
  edit: "Edit", depth_to_image: "Depths",
  unconditional: "Unasked", class_to_image: "Class", upscale: "Upscale", layout_to_image: "Layout", semantic_synthesis: "Map" };
const KEPT = "safelight.task";
const $ = (id) => document.getElementById(id);

const known = await ask("/api/tasks");
const form = new Form();
const model = () => (known.models.length > 1 ? $("model").value : undefined);
const offered = () => known.tasks_of[model() ?? known.models[0]] ?? Object.keys(known.tasks);

// A task's fields; those of a ControlNet only where the server was started with one.
function schemaOf(task) {
  const { properties, ...rest } = known.tasks[task];
  const kept = Object.entries(properties).filter(([name]) => known.controlled || !name.startsWith("control_"));
  return { ...rest, properties: Object.fromEntries(kept) };
}

function choose(task) {
  const name = offered().includes(task) ? task : offered()[0];
  localStorage.setItem(KEPT, name);
  $("tasks").replaceChildren(...offered().map((one) => make("button", { type: "button", onclick: () => choose(one), "aria-current": one === name ? "page" : null }, LABELS[one] ?? one.replaceAll("_", " "))));
  form.show(name, schemaOf(name));
}

async function develop() {
  if (!$("form").reportValidity()) return;
  try {
    const job = await ask(`/api/tasks/${form.task}`, { method: "POST", body: { ...form.request(), model: model() } });
    tray.states.set(job.id, "waiting"); // it may have failed before the next event comes
  } catch (problem) { note(problem); }
}

// A picture's recipe, of whatever program, into the form.
function again(made) {
  choose(made.task);
  form.fill(made.request);
  for (const remark of made.remarks) note(remark);
}

const gallery = new Gallery({ again, use: (task, name) => { choose(task); form.give("image", name); $("form").scrollIntoView({ behavior: "smooth" }); } });
gallery.can = (label) => offered().some((task) => LABELS[task] === label);
const tray = new Tray({ open: (name) => gallery.open(name), example: (text) => { choose("text_to_image"); form.fill({ ...form.values, prompt: text }); develop(); } });

$("model").append(...known.models.map((name) => make("option", { value: name }, name.split(/[\\/]/).at(-1))));
$("model-choice").hidden = known.models.length < 2;
$("model").onchange = () => choose(form.task);
$("form").onsubmit = (event) => { event.preventDefault(); develop(); };
$("reset").onclick = () => form.reset();
document.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) develop(); });

for (const button of document.querySelectorAll("[data-as]")) {
  button.onclick = async () => {
    const write = { shell: asShell, python: asPython, curl: asCurl }[button.dataset.as];
    await navigator.clipboard.writeText(write(form.task, form.request(), form.schema, model()));
    $("copying").open = false;
    note("Copied.");
  };
}

// A picture dropped anywhere, or pasted: its recipe if it has one, else it is what to draw from.
async function taken(file) {
  try {
    const data = await asData(file);
    try {
      again(await ask("/api/read", { method: "POST", body: { picture: data } }));
      note("Its settings are in the form.");
    } catch {
      if (!("image" in form.schema.properties)) choose("image_to_image");
      form.give("image", data);
    }
  } catch (error) { note(error); }
}
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (!file) return;
  const place = event.target.closest?.(".drop");
  if (place) form.take(place.dataset.name, file);
  else taken(file);
});
document.addEventListener("paste", (event) => { const file = event.clipboardData.files[0]; if (file) taken(file); });

let news = null;
function listen() {
  news = new EventSource("/api/events");
  news.onmessage = async (event) => {
    const jobs = JSON.parse(event.data);
    tray.show(jobs, () => gallery.refresh().catch(note));
    const drawing = jobs.find((job) => job.state === "drawing");
    document.title = drawing ? `${Math.round(100 * drawing.share)} % · Safelight` : "Safelight";
  };
}
choose(localStorage.getItem(KEPT) ?? "text_to_image");
listen();
gallery.refresh().catch(note);
if (known.models.some((name) => !(name in known.tasks_of))) {
  // what another model can be asked for is known once it has been loaded
  setInterval(async () => { try { Object.assign(known, await ask("/api/tasks")); } catch { /* told by the next request */ } }, 15000);
}
