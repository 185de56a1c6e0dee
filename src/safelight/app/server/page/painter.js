// A mask painted over a picture: white is repainted. It is told as a PNG of the picture's own size.

import { make } from "./api.js";

const MOST_UNDO = 30;

export function painter(source, tell) {
  const image = make("img", { src: source, alt: "the picture to repaint" });
  const canvas = make("canvas", { "aria-label": "the mask: paint what shall be drawn anew" });
  const brush = make("input", { type: "range", min: 2, max: 50, value: 14, "aria-label": "size of the brush" });
  const undo = [];
  let erase = false;
  const pen = canvas.getContext("2d", { willReadFrequently: true });

  image.onload = () => { [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight]; };

  const remember = () => { undo.push(pen.getImageData(0, 0, canvas.width, canvas.height)); if (undo.length > MOST_UNDO) undo.shift(); };
  const changed = () => tell(painted(pen, canvas) ? stencil(canvas) : null);

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * canvas.width, (event.clientY - box.top) / box.height * canvas.height];
  };
  const stroke = (from, to) => {
    pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
    pen.strokeStyle = "#fff";
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = brush.value / 100 * Math.max(canvas.width, canvas.height);
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(...to);
    pen.stroke();
  };
  let last = null;
  canvas.onpointerdown = (event) => { canvas.setPointerCapture(event.pointerId); remember(); last = at(event); stroke(last, last); };
  canvas.onpointermove = (event) => { if (last) { const here = at(event); stroke(last, here); last = here; } };
  canvas.onpointerup = canvas.onpointercancel = () => { if (last) { last = null; changed(); } };

  const tool = (label, act) => make("button", { type: "button", onclick: (event) => { act(event.target); changed(); } }, label);
  return make("div", { className: "painter" },
    make("div", { className: "stack" }, image, canvas),
    make("div", { className: "tools" }, brush,
      tool("erase", (button) => { erase = !erase; button.setAttribute("aria-pressed", erase); button.textContent = erase ? "paint" : "erase"; }),
      tool("undo", () => undo.length && pen.putImageData(undo.pop(), 0, 0)),
      tool("invert", () => { remember(); invert(pen, canvas); }),
      tool("clear", () => { remember(); pen.clearRect(0, 0, canvas.width, canvas.height); })));
}

function painted(pen, canvas) {
  const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  for (let k = 3; k < data.length; k += 4) if (data[k] > 127) return true;
  return false;
}

function invert(pen, canvas) {
  pen.globalCompositeOperation = "source-out";
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function stencil(canvas) {
  const mask = make("canvas", { width: canvas.width, height: canvas.height });
  const pen = mask.getContext("2d");
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, mask.width, mask.height);
  pen.drawImage(canvas, 0, 0);
  return mask.toDataURL("image/png");
}
