// The routes, and small helpers that every part of the page needs. Errors of the server become `Problem`s.

export class Problem extends Error {
  constructor({ what, remedy }) { super(what); this.remedy = remedy; }
}

export async function ask(path, { method = "GET", body } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Problem({ what: "The server does not answer.", remedy: "Is `safelight serve` still running?" });
  }
  if (answer.status === 401 && path !== "/api/login") {
    await signIn();
    return ask(path, { method, body });
  }
  const told = await answer.json();
  if (!answer.ok) throw new Problem(told.error);
  return told;
}

let signingIn = null; // one dialog, however many requests wait for it

function signIn() {
  signingIn ??= new Promise((done) => {
    const dialog = document.getElementById("login");
    dialog.addEventListener("close", async () => {
      const token = dialog.querySelector("input").value;
      try {
        await ask("/api/login", { method: "POST", body: { token } });
        signingIn = null;
        done();
      } catch (problem) { note(problem); dialog.showModal(); }
    });
    dialog.showModal();
  });
  return signingIn;
}

// An element with properties and children; text is always text.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "list") element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Tell something in the corner: a problem, or a sentence.
export function note(what) {
  const bad = what instanceof Error;
  const box = make("div", { className: bad ? "bad" : "" }, make("b", {}, bad ? what.message : what));
  if (bad && what.remedy) box.append(make("p", {}, what.remedy));
  document.getElementById("notes").append(box);
  setTimeout(() => box.remove(), bad ? 9000 : 3500);
}

export const pictureUrl = (name) => `/pictures/${encodeURIComponent(name)}`;
export const isUrl = (picture) => picture.startsWith("data:");
export const shown = (picture) => (isUrl(picture) ? picture : pictureUrl(picture));

// A file as a data URL. What is no PNG, JPEG or WebP is drawn anew as a PNG, if the browser knows it.
export async function asData(file) {
  if (!["image/png", "image/jpeg", "image/webp"].includes(file.type)) {
    const bitmap = await createImageBitmap(file);
    const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    return canvas.toDataURL("image/png");
  }
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error("This file cannot be read."));
    reader.readAsDataURL(file);
  });
}
