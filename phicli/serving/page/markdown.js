// Markdown as elements. The text is a stranger's: it only ever becomes text nodes, never markup.

const LONGEST = 4000; // characters of a line that is looked through for emphasis and the like
const DEEPEST = 6;

const INLINE = new RegExp([
  "`(?<code>[^`\\n]{1,500})`",
  "\\*\\*(?<strong>(?:[^*\\n]|\\*(?!\\*)){1,500})\\*\\*",
  "~~(?<del>[^~\\n]{1,500})~~",
  "\\*(?<em>[^*\\s](?:[^*\\n]{0,500}[^*\\s])?)\\*",
  "(?<![\\w])_(?<em2>[^_\\s](?:[^_\\n]{0,500}[^_\\s])?)_(?![\\w])",
  "\\[(?<label>[^\\[\\]\\n]{1,500})\\]\\((?<target>[^\\s()]{1,500})\\)",
  "(?<bare>https?://[^\\s<>()\"']{1,500})",
].join("|"), "gu");

export function render(target, text) {
  target.replaceChildren(...blocks(text.split("\n"), 0));
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function inline(text, depth) {
  if (depth > DEEPEST || text.length > LONGEST) return [text];
  const found = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) found.push(text.slice(at, match.index));
    at = match.index + match[0].length;
    const g = match.groups;
    if (g.code !== undefined) found.push(element("code", g.code));
    else if (g.label !== undefined) found.push(link(g.target, inline(g.label, depth + 1), match[0]));
    else if (g.bare !== undefined) found.push(link(g.bare, [g.bare], g.bare));
    else if (g.strong !== undefined) found.push(element("strong", ...inline(g.strong, depth + 1)));
    else if (g.del !== undefined) found.push(element("del", ...inline(g.del, depth + 1)));
    else found.push(element("em", ...inline(g.em ?? g.em2, depth + 1)));
  }
  if (at < text.length) found.push(text.slice(at));
  return found;
}

function link(target, children, source) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return source;
  const made = element("a", ...children);
  made.href = target;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  return made;
}

function lines(text, depth) { // a paragraph's own line breaks stay
  return text.flatMap((line, at) => [...(at ? [element("br")] : []), ...inline(line, depth)]);
}

const FENCE = /^\s{0,3}(```+|~~~+)\s*([\w+#.-]{0,30})/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const ROW = /^\s*\|(.+)\|\s*$/;
const RULER = /^\s*\|?(\s*:?-{1,}:?\s*\|)+\s*(:?-{1,}:?\s*)?$/;

function blocks(text, depth) {
  const made = [];
  let at = 0;
  while (at < text.length) {
    const line = text[at];
    const short = line.slice(0, LONGEST);
    const fence = FENCE.exec(short);
    const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(short);
    if (!line.trim()) {
      at += 1;
    } else if (line.length > LONGEST) { // expressions that look for more would take their time
      made.push(element("p", line));
      at += 1;
    } else if (fence) {
      let end = at + 1;
      while (end < text.length && !text[end].trim().startsWith(fence[1])) end += 1;
      made.push(code(text.slice(at + 1, end).join("\n"), fence[2]));
      at = end + 1;
    } else if (heading) {
      made.push(element(`h${heading[1].length}`, ...inline(heading[2], depth)));
      at += 1;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      made.push(element("hr"));
      at += 1;
    } else if (ROW.test(line) && RULER.test(text[at + 1] ?? "")) {
      let end = at + 2;
      while (end < text.length && ROW.test(text[end])) end += 1;
      made.push(table(text.slice(at, end), depth));
      at = end;
    } else if (/^\s*>/.test(line) && depth < DEEPEST) {
      let end = at;
      while (end < text.length && /^\s*>/.test(text[end])) end += 1;
      made.push(element("blockquote", ...blocks(text.slice(at, end).map((l) => l.replace(/^\s*> ?/, "")), depth + 1)));
      at = end;
    } else if (ITEM.test(line) && depth < DEEPEST) {
      const end = endOfList(text, at);
      made.push(list(text.slice(at, end), depth));
      at = end;
    } else {
      let end = at + 1;
      while (end < text.length && text[end].trim() && !FENCE.test(text[end]) && !ITEM.test(text[end])
             && !/^(#{1,6}\s|\s*>)/.test(text[end])) end += 1;
      made.push(element("p", ...lines(text.slice(at, end), depth)));
      at = end;
    }
  }
  return made;
}

function endOfList(text, at) {
  const [, spaces, mark] = ITEM.exec(text[at]), indent = spaces.length;
  const goesOn = (line) => {
    const item = ITEM.exec(line);
    return item && item[1].length >= indent && (item[1].length > indent || /\d/.test(item[2]) === /\d/.test(mark));
  };
  let end = at + 1;
  while (end < text.length) {
    const line = text[end];
    const inside = line.length - line.trimStart().length > indent;
    const next = text[end + 1] ?? "";
    if (!line.trim()) {
      if (!goesOn(next) && !/^\s{2,}\S/.test(next)) break;
    } else if (!inside && !goesOn(line)) break;
    end += 1;
  }
  return end;
}

function list(text, depth) {
  const [, spaces, mark] = ITEM.exec(text[0]);
  const ordered = /\d/.test(mark);
  const made = element(ordered ? "ol" : "ul");
  if (ordered) made.start = parseInt(mark, 10);
  let item = [];
  const close = () => { if (item.length) made.append(element("li", ...tight(blocks(item, depth + 1)))); };
  for (const line of text) {
    const match = ITEM.exec(line);
    if (match && match[1].length === spaces.length) {
      close();
      item = [match[3]];
    } else {
      item.push(line.replace(/^\s{1,4}/, ""));
    }
  }
  close();
  return made;
}

function tight(children) { // an item of one paragraph needs no paragraph
  return children[0]?.tagName === "P" ? [...children[0].childNodes, ...children.slice(1)] : children;
}

function table(text, depth) {
  const cells = (line) => ROW.exec(line)[1].split("|").map((cell) => cell.trim());
  const row = (line, name) => element("tr", ...cells(line).map((cell) => element(name, ...inline(cell, depth))));
  return element("table", element("thead", row(text[0], "th")),
                 element("tbody", ...text.slice(2).map((line) => row(line, "td"))));
}

function code(text, language) {
  const copy = element("button", "Copy");
  copy.type = "button";
  copy.dataset.copies = text;
  const inner = element("code", text);
  if (language) inner.dataset.language = language;
  const made = element("div", copy, element("pre", inner));
  made.className = "code";
  return made;
}
