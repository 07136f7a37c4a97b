"""The page of `sidestep show`: one text of HTML with its style and script, which fetches nothing from elsewhere."""

import json
from collections.abc import Mapping
from typing import Any

from sidestep.wording import html_text

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #59636b; --paper: #fff; --line: #d8dde2; --panel: #f3f5f7;
        --first: #0072b2; --warn: #9c2a00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a9b2ba; --paper: #15191c; --line: #3a4249;
        --panel: #20262b; --first: #56b4e9; --warn: #ff9d76 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 64rem;
       margin: 1.5rem auto 3rem; padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0 0 .2rem } h2 { font-size: 1.05rem; margin: 0 0 .6rem }
.soft { color: var(--soft); font-size: 14px; margin: .3rem 0 } .warn { color: var(--warn) }
.parts { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1rem }
section { flex: 1 1 20rem; min-width: 0; background: var(--panel); border-radius: 8px; padding: 1rem }
canvas { display: block; width: 100%; max-width: 20rem; background: #000; border-radius: 6px; cursor: crosshair;
         touch-action: none; image-rendering: pixelated }
canvas.over { outline: 3px solid var(--first) }
button, label.file { font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
         border-radius: 6px; padding: .25rem .8rem; cursor: pointer; display: inline-block }
label.file input { position: absolute; opacity: 0; width: 1px; height: 1px }
label.file:focus-within, button:focus-visible { outline: 2px solid var(--first) }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .7rem 0 }
input[type=range] { width: 100%; max-width: 20rem; accent-color: var(--first) }
.bar { display: grid; grid-template-columns: var(--name) 1fr 3.4rem; gap: .5rem; align-items: center;
       font-size: 14px; margin: .15rem 0 }
.bar i { display: block; height: 14px; border-radius: 3px; background: var(--first); width: 0 }
.bar span:last-child { text-align: right; font-variant-numeric: tabular-nums }
.bar.best { font-weight: 700 } .answer { font-size: 1.6rem; font-weight: 700; margin: 0 }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .5rem .25rem 0; border-bottom: 1px solid var(--line) }
tbody tr { cursor: pointer } tbody tr.now { box-shadow: inset 4px 0 var(--first) }
td:first-child, th:first-child { padding-left: .6rem; white-space: nowrap }
"""
_BODY = """
<h1>__RUN__</h1>
<p class="soft">__RULE__, step __STEP__. __WARN__</p>
<div class="parts">
<section>
  <h2>Picture</h2>
  <canvas id="canvas" width="320" height="320" aria-label="draw here, or drop a picture"></canvas>
  <div class="row"><button id="clear">Clear</button><button id="invert">Swap black and white</button>
  <label class="file">Open a picture<input id="file" type="file" accept="image/*"></label></div>
  <p class="soft">Draw with the mouse or a finger, or drop a picture. The net gets __SIZE__ pixels.</p>
  <div id="log" hidden>
    <h2>Step of the log: <span id="at"></span></h2>
    <input id="step" type="range" min="0" aria-label="step of the log">
    <p class="soft">The net is built again from its step log, as it was after that step.</p>
  </div>
  <p class="soft" id="nolog" hidden></p>
</section>
<section>
  <h2>Answer <span id="where" class="soft"></span></h2>
  <p class="answer" id="answer">-</p>
  <div id="bars"></div>
  <p class="soft" id="notes" aria-live="polite"></p>
</section>
<section>
  <h2>On the way</h2>
  <table><thead><tr><th>part</th><th>its own guess</th><th>read after it</th></tr></thead>
  <tbody id="stages"></tbody></table>
  <p class="soft">Choose a row to see its bars. Shares are the net's own scores.</p>
</section>
</div>
"""
_SCRIPT = """
const about = JSON.parse(document.getElementById("about").textContent);
const by = id => document.getElementById(id), canvas = by("canvas"), pen = canvas.getContext("2d");
let drawing = false, last = null, file = null, stages = [], timer = 0, asked = 0, later = 0;
const percent = share => (100 * share).toFixed(1) + "%";
const best = shares => shares.indexOf(Math.max(...shares));

function clear() {
  pen.fillStyle = "#000"; pen.fillRect(0, 0, canvas.width, canvas.height);
  file = null; stages = []; asked++; clearInterval(timer);
  by("stages").replaceChildren(); by("bars").replaceChildren(); by("notes").textContent = "";
  by("answer").textContent = "-"; by("where").textContent = "";
}
function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}
function line(from, to) {
  pen.strokeStyle = "#fff"; pen.lineWidth = canvas.width / 11; pen.lineCap = pen.lineJoin = "round";
  pen.beginPath(); pen.moveTo(...from); pen.lineTo(...to); pen.stroke();
}
canvas.addEventListener("pointerdown", event => {
  if (file) clear();
  drawing = true; last = place(event); line(last, last); canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", event => {
  if (drawing) { const next = place(event); line(last, next); last = next; soon(); }
});
canvas.addEventListener("pointerup", () => { drawing = false; ask(); });
canvas.addEventListener("pointercancel", () => { drawing = false; });
by("clear").addEventListener("click", clear);
by("invert").addEventListener("click", () => {
  pen.globalCompositeOperation = "difference"; pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height); pen.globalCompositeOperation = "source-over";
  file = null; ask();
});
async function take(given) {
  clear();
  try {
    const picture = await createImageBitmap(given);
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  } catch { }
  file = given; ask();
}
by("file").addEventListener("change", event => { if (event.target.files[0]) take(event.target.files[0]); });
for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, event => {
  event.preventDefault(); canvas.classList.toggle("over", kind === "dragover");
  if (kind === "drop" && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
function soon() { if (!later) later = setTimeout(() => { later = 0; ask(false); }, 250); }

async function ask(moving = true) {
  const mine = ++asked;
  const body = file || await new Promise(done => canvas.toBlob(done, "image/png"));
  const step = about.steps && by("step").value !== by("step").max ? "?step=" + by("step").value : "";
  let found;
  if (body.size > about.most_bytes)  // the server would hang up in the middle of it
    found = {error: `the picture has ${body.size} bytes, at most ${about.most_bytes} are read; make it smaller`};
  else try {
    const reply = await fetch("/answer" + step, {
      method: "POST", body, headers: {"Content-Type": "application/octet-stream"}});
    found = await reply.json();
  } catch { found = {error: "the server does not answer; is sidestep show still running?"}; }
  if (mine !== asked) return;
  by("notes").textContent = found.error || found.notes.join(" ");
  by("notes").className = found.error ? "soft warn" : "soft";
  if (found.error) return;
  stages = found.stages;
  by("stages").replaceChildren(...stages.map((stage, index) => {
    const row = document.createElement("tr");
    const said = shares => about.classes[best(shares)] + "  " + percent(Math.max(...shares));
    const words = [stage.name, said(stage.own), said(stage.read)];
    row.append(...words.map(word => Object.assign(document.createElement("td"), {textContent: word})));
    row.addEventListener("click", () => { clearInterval(timer); show(index); });
    return row;
  }));
  clearInterval(timer);
  let at = moving ? 0 : stages.length - 1;
  show(at);
  if (moving) timer = setInterval(() => { if (++at < stages.length) show(at); else clearInterval(timer); }, 200);
}
function show(index) {
  const shares = stages[index].read;
  const order = shares.map((share, label) => label);
  if (order.length > 12) order.sort((a, b) => shares[b] - shares[a]).splice(12);
  [...by("stages").children].forEach((row, each) => row.classList.toggle("now", each === index));
  by("answer").textContent = about.classes[best(shares)];
  by("where").textContent = "after " + stages[index].name;
  by("bars").replaceChildren(...order.map(label => {
    const made = kind => document.createElement(kind);
    const [bar, name, room, fill, share] = ["div", "span", "div", "i", "span"].map(made);
    bar.className = "bar" + (label === best(shares) ? " best" : "");
    name.textContent = about.classes[label]; share.textContent = percent(shares[label]);
    fill.style.width = percent(shares[label]); room.append(fill); bar.append(name, room, share);
    return bar;
  }));
}
if (about.steps) {
  by("log").hidden = false;
  by("step").max = by("step").value = about.steps; by("at").textContent = about.steps;
  by("step").addEventListener("input", event => { by("at").textContent = event.target.value; });
  by("step").addEventListener("change", () => { if (stages.length) ask(); });
} else { by("nolog").hidden = false; by("nolog").textContent = "No slider over steps: " + about.no_log + "."; }
by("bars").style.setProperty("--name", Math.min(14, Math.max(...about.classes.map(name => name.length))) + "ch");
canvas.height = Math.round(canvas.width * about.height / about.width);
clear();
"""


def page(about: Mapping[str, Any], nonce: str) -> str:
    """Return the page of a run; `nonce` is what its style and script are allowed by."""
    warn = f"Not finished: {about['unfinished']}." if about["unfinished"] else ""
    words = {
        "__RUN__": about["run"], "__RULE__": about["rule"], "__STEP__": f"{about['step']:,}", "__WARN__": warn,
        "__SIZE__": f"{about['width']} x {about['height']}{' grey' if about['channels'] == 1 else ' in colour'}",
    }  # fmt: skip
    body = _BODY
    for mark, word in words.items():
        body = body.replace(mark, html_text(word))
    # no `<` in the record, so that nothing in it ends the element
    record = json.dumps(dict(about)).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(about['run'])}</title>\n"
        f'<link rel="icon" href="data:,">\n<style nonce="{nonce}">{_STYLE}</style>\n{body}'
        f'<script id="about" type="application/json">{record}</script>\n'
        f'<script nonce="{nonce}">{_SCRIPT}</script>\n</html>\n'
    )
