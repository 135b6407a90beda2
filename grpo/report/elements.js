"use strict";
// Making elements, and showing any text as text. Nothing in this page is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

// Deflated JSON in base64, as page.py packs it.
async function unpacked(id) {
  const packed = atob(byId(id).textContent.trim());
  if (!packed) return "";
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(inflated).text();
}

// Control characters, what turns the direction of text around, invisible ones, and halves of pairs. Joiners stay: emoji need them.
const UNSEEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]" +
    "|[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff]",
  "g",
);

function nameOf(character) {
  const code = character.charCodeAt(0);
  return code < 0x100 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
}

// A text with what cannot be seen made visible.
function visible(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(UNSEEN)) {
    if (match.index > end) nodes.push(text.slice(end, match.index));
    nodes.push(el("span", { class: "unseen" }, nameOf(match[0])));
    end = match.index + 1;
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}

// A text with every place marked where the words that were searched for stand.
function marked(text, words) {
  if (!words) return visible(text);
  const nodes = [], lower = text.toLowerCase(), wanted = words.toLowerCase();
  if (lower.length !== text.length) return visible(text); // places in it would not be places in the text
  let end = 0;
  for (let at = lower.indexOf(wanted); at >= 0 && nodes.length < 2000; at = lower.indexOf(wanted, end)) {
    nodes.push(...visible(text.slice(end, at)), el("mark", {}, ...visible(text.slice(at, at + wanted.length))));
    end = at + wanted.length;
  }
  return [...nodes, ...visible(text.slice(end))];
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}
