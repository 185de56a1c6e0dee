// The form's request in the words of others: the command line, Python, curl. Pictures stand as names of files.

import { isUrl } from "./api.js";

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;
const literal = (value) => (value === true ? "True" : value === false ? "False" : JSON.stringify(value));
const file = (name, picture) => (isUrl(picture) ? `${name}.png` : picture);

// Pictures as names of files, and words apart from options.
function parts(request, schema) {
  const named = Object.entries(request).map(([name, value]) => [name, schema.properties[name].format === "picture" ? file(name, value) : value]);
  const first = new Set([...(schema.required ?? []), "prompt"]);
  return [Object.keys(schema.properties).filter((name) => first.has(name)).flatMap((name) => named.filter(([one]) => one === name)), named.filter(([name]) => !first.has(name))];
}

export function asShell(task, request, schema, model) {
  const [first, options] = parts(request, schema);
  const told = options.flatMap(([name, value]) => {
    const option = `--${name.replaceAll("_", "-")}`;
    if (typeof value === "boolean") return [value ? option : option.replace("--", "--no-")];
    return (Array.isArray(value) ? value : [value]).flatMap((one) => [option, typeof one === "number" ? one : quoted(one)]);
  });
  const command = task.replace("_to_", "2").replaceAll("_", "-");
  return ["safelight", command, ...first.map(([, value]) => quoted(value)), ...told, ...(model ? ["--model", quoted(model)] : [])].join(" ");
}

export function asPython(task, request, schema, model) {
  const [first, options] = parts(request, schema);
  const keywords = [...first, ...options].map(([name, value]) => `${name}=${literal(value)}`);
  return `import safelight\n\nmodel = safelight.load(${model ? literal(model) : ""})\npictures = safelight.${task}(model, ${keywords.join(", ")})\npictures.save("outputs")\n`;
}

export function asCurl(task, request, schema, model) {
  const told = Object.fromEntries(Object.entries(request).map(([name, value]) => [name, schema.properties[name].format === "picture" && isUrl(value) ? "…base64…" : value]));
  return `curl -X POST ${location.origin}/api/tasks/${task} -H 'content-type: application/json' -d ${quoted(JSON.stringify(model ? { ...told, model } : told))}`;
}
