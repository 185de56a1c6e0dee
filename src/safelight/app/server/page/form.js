// The form: made from a task's JSON schema, so that a keyword of a task is a field here by itself.

import { asData, make, note, shown } from "./api.js";
import { painter } from "./painter.js";

// What is shown at once, in this order; the rest is under "More settings".
const FIRST = ["prompt", "negative_prompt", "label", "boxes", "strength", "left", "right", "top", "bottom", "noise_level",
  "image_guidance_scale", "width", "height", "steps", "guidance_scale", "sampler", "grid", "seed", "count", "hires", "hires_strength"];
const WORDS = ["prompt", "negative_prompt", "boxes"];
const SLIDE_TO = { steps: 60, guidance_scale: 15, mask_blur: 32, left: 512, right: 512, top: 512, bottom: 512 }; // by hand more
const NAMES = { sampler: "sampler", grid: "noise levels", count: "pictures", guidance_scale: "guidance", padding_mask_crop: "only around the mask",
  image_guidance_scale: "guidance by the picture", hires: "times larger (hires)", hires_strength: "strength of that" };
const DROP = { class_map: "Drop a map of classes", depth: "Drop a map of depths", control_image: "Drop the picture to follow" };
const NOTHING = { seed: "fresh", hires: "as it is" }; // what no number means
const KEPT = "safelight.values";

const $ = (id) => document.getElementById(id);

export class Form {
  constructor() {
    this.values = JSON.parse(localStorage.getItem(KEPT) ?? "{}"); // what was said, by field; shared by all tasks
    this.pictures = {}; // field -> a data URL, or a name in the gallery
    this.task = null;
  }

  show(task, schema) {
    [this.task, this.schema] = [task, schema];
    $("about").textContent = schema.description;
    const names = Object.keys(schema.properties).filter((name) => name !== "model");
    const isPicture = (name) => schema.properties[name].format === "picture";
    const first = FIRST.filter((name) => names.includes(name));
    const rest = names.filter((name) => !first.includes(name) && !isPicture(name));
    $("fields").replaceChildren(...first.map((name) => this.field(name)));
    $("rest").replaceChildren(...rest.map((name) => this.field(name, true)));
    this.showPictures();
  }

  showPictures() {
    const names = Object.keys(this.schema.properties).filter((name) => this.schema.properties[name].format === "picture");
    const made = [];
    for (const name of names) {
      if (name === "mask") {
        if (this.pictures.image) made.push(painter(shown(this.pictures.image), (mask) => { this.pictures.mask = mask; }));
      } else if (name === "image" && names.includes("mask") && this.pictures.image) {
        continue; // the painter shows it
      } else made.push(this.drop(name));
    }
    $("pictures").replaceChildren(...made);
    if (names.includes("mask") && this.pictures.image) $("pictures").append(
      make("p", {}, make("button", { type: "button", className: "quiet", onclick: () => this.give("image", null) }, "Another picture")));
  }

  // A place for a picture: dropped, chosen or pasted.
  drop(name) {
    const given = this.pictures[name];
    const input = make("input", { type: "file", accept: "image/*", hidden: true,
      onchange: () => input.files[0] && this.take(name, input.files[0]) });
    const place = make("div", { className: "drop", tabIndex: 0, role: "button", title: this.schema.properties[name].description },
      given ? make("img", { src: shown(given), alt: name }) : make("span", {}, DROP[name] ?? "Drop a picture, or choose one"), input);
    place.dataset.name = name;
    if (given) place.append(make("button", { type: "button", className: "close", "aria-label": "Take it away",
      onclick: (event) => { event.stopPropagation(); this.give(name, null); } }, "×"));
    place.onclick = (event) => event.target !== input && input.click();
    place.onkeydown = (event) => (event.key === "Enter" || event.key === " ") && input.click();
    return place;
  }

  async take(name, file) {
    try { this.give(name, await asData(file)); } catch (error) { note(error); }
  }

  give(name, picture) {
    this.pictures[name] = picture;
    if (name === "image") this.pictures.mask = null;
    this.showPictures();
  }

  field(name, explained = false) {
    const about = kindOf(this.schema.properties[name]);
    const label = NAMES[name] ?? name.replaceAll("_", " ");
    const id = `field-${name}`;
    const box = make("div", { className: "field", title: explained ? "" : about.description ?? "" });
    const control = this.control(name, id, about);
    if (about.type === "boolean") {
      box.classList.add("check", "wide");
      box.append(control, make("label", { htmlFor: id }, label));
    } else {
      box.append(make("label", { htmlFor: id }, label), control);
      if (WORDS.includes(name) || name === "strength") box.classList.add("wide");
      if (name === "prompt") box.classList.add("prompt");
    }
    if (explained) box.append(make("small", {}, about.description ?? ""));
    return box;
  }

  control(name, id, about) {
    const value = this.values[name] ?? about.default ?? "";
    const say = (told) => { this.say(name, told, about); };
    if (about.choices || about.enum) {
      const choices = about.choices ?? about.enum.map((one) => ({ value: one, label: one }));
      const empty = about.default === null ? [make("option", { value: "" }, "auto")] : [];
      const select = make("select", { id, onchange: () => say(select.value) },
        ...empty, ...choices.map((one) => make("option", { value: one.value }, one.label)));
      select.value = value;
      return select;
    }
    if (about.type === "boolean") {
      const box = make("input", { id, type: "checkbox", checked: value === true, onchange: () => say(box.checked) });
      return box;
    }
    if (about.type === "integer" || about.type === "number") return this.number(name, id, about, value, say);
    if (WORDS.includes(name)) {
      const text = make("textarea", { id, value, rows: name === "prompt" ? 3 : 1, oninput: () => say(text.value),
        placeholder: name === "prompt" ? "a red fox in the snow" : "" });
      return text;
    }
    const line = make("input", { id, value: Array.isArray(value) ? value.join(", ") : value, oninput: () => say(line.value) });
    return line;
  }

  number(name, id, about, value, say) {
    const step = about.type === "integer" ? about.multipleOf ?? 1 : "any";
    const box = make("input", { id, type: "number", min: about.minimum, max: about.maximum, step, value,
      placeholder: about.default === null ? NOTHING[name] ?? "auto" : "", oninput: () => { say(box.value); if (slide) slide.value = box.value; } });
    const most = SLIDE_TO[name] ?? (about.maximum <= 1 && about.default !== null ? about.maximum : null);
    const slide = most === null ? null : make("input", { type: "range", min: about.minimum, max: most, step: step === "any" ? (most <= 1 ? 0.01 : 0.5) : 1,
      value: value === "" ? 7.5 : value, "aria-label": name, oninput: () => { box.value = slide.value; say(slide.value); } });
    if (slide) return make("div", { className: "slider" }, slide, box);
    if (name !== "seed") return box;
    const dice = make("button", { type: "button", title: "A fresh seed each time", onclick: () => { box.value = ""; say(""); } }, "⚄");
    return make("div", { className: "with-button" }, box, dice);
  }

  say(name, told, about) {
    const empty = told === "" && !WORDS.includes(name) && name !== "label";
    const number = about.type === "integer" || about.type === "number";
    const value = number && told !== "" ? Number(told) : about.type === "array" ? told.split(",").map((one) => one.trim()).filter(Boolean) : told;
    if (empty || same(value, about.default)) delete this.values[name];
    else this.values[name] = value;
    localStorage.setItem(KEPT, JSON.stringify(this.values));
  }

  // What was said for this task, without what is as it is by default.
  request() {
    const known = this.schema.properties;
    const said = Object.fromEntries(Object.entries(this.values).filter(([name]) => name in known));
    for (const name of this.schema.required ?? []) if (known[name].format !== "picture") said[name] ??= "";
    for (const [name, picture] of Object.entries(this.pictures)) if (picture && name in known) said[name] = picture;
    return said;
  }

  // Fill in another request; what it does not say is as it is by default.
  fill(request) {
    const words = Object.fromEntries(Object.entries(request).filter(([, value]) => value !== null && typeof value !== "object"));
    for (const [name, value] of Object.entries(words)) if (name in this.schema.properties && same(value, kindOf(this.schema.properties[name]).default)) delete words[name];
    this.values = words;
    localStorage.setItem(KEPT, JSON.stringify(this.values));
    this.show(this.task, this.schema);
  }

  reset() {
    const words = Object.fromEntries([...WORDS, "label"].filter((name) => name in this.values).map((name) => [name, this.values[name]]));
    this.fill(words);
  }
}

// A field's schema with its type at hand, where it may also be null.
function kindOf(about) {
  return { ...(about.anyOf?.find((one) => one.type !== "null") ?? {}), ...about };
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
