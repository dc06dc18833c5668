// The panel: what the program says becomes a page, what is pressed becomes a command.

import { html, nothing, render } from "./vendor/lit-html/lit-html.js";
import { live } from "./vendor/lit-html/directives/live.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { Chart } from "./charts.js";
import { EnrolDialog } from "./enrol.js";
import * as icons from "./icons.js";
import { Preview } from "./preview.js";
import { Wire, upload } from "./wire.js";

const wire = new Wire();
const local = {
  errors: {}, // place -> sentence
  moved: {}, // setting -> {value, until}: a slider under the finger is ahead of the program
  saved: "",
  dialog: "", // "delete", "real", "help", "replace"
  about: null,
  cameras: null,
  keys: localStorage.getItem("keys") !== "off",
  said: "",
};
const previews = {
  output: new Preview("output", "What callers see", draw),
  camera: new Preview("camera", "Your camera", draw),
  landmarks: new Preview("landmarks", "Your face as the tracker sees it", draw),
};
const charts = {
  glass: new Chart([{ colour: "--accent", width: 2 }, { colour: "--muted", dash: [3, 3] }], 80),
  fps: new Chart([{ colour: "--accent", width: 2 }], 32),
  stages: new Chart([{ colour: "--accent", width: 2 }, { colour: "--second" }, { colour: "--muted", dash: [3, 3] }], 20),
};
const enrol = new EnrolDialog(wire, previews, draw);

// --- what the state means ------------------------------------------------------------------------------------

const WORDS = {
  "no avatar": ["No avatar yet", "Make one from a few photos", "off"],
  starting: ["Starting", "The avatar is being loaded", "wait"],
  live: ["Live", "Callers see {avatar}", "live"],
  voice: ["Live · voice", "No face in view: {avatar} speaks by your voice", "live"],
  "no face": ["Live", "No face in view: {avatar} rests", "live"],
  "no camera": ["No webcam", "{avatar} rests until it is back", "wait"],
  held: ["Held", "Callers see a frozen picture", "held"],
  private: ["Private", "Callers see a still card", "private"],
  "pass-through": ["Real camera", "Callers see you as you are", "real"],
  failed: ["Interrupted", "The program tries again", "wait"],
  stopped: ["Stopped", "Callers see nothing", "off"],
};
const PREVIEW_WORDS = {
  live: ["Off", "Only you see this: {avatar}", "off"],
  voice: ["Off · voice", "No face in view: {avatar} speaks by your voice", "off"],
  "no face": ["Off", "No face in view: {avatar} rests", "off"],
  held: ["Off · held", "Only you see this", "off"],
  private: ["Private", "Not live; going live shows a still card", "private"],
  "pass-through": ["Off · real camera", "Only you see this", "off"],
};

function situation() {
  const state = wire.state;
  const off = state.state === "no camera" && !state.settings.webcam;
  const words = (off && ["Webcam off", "{avatar} rests", "wait"]) || (!state.on_air && PREVIEW_WORDS[state.state]) || WORDS[state.state] || ["", "", "off"];
  if (state.on_air && !state.sending) {
    const stuck = state.problems.length > 0;
    return { title: stuck ? "Not live" : "Going live", text: "Callers see nothing yet", mode: "wait" };
  }
  const avatar = state.avatar || "the avatar";
  return { title: words[0], text: words[1].replace("{avatar}", avatar), mode: words[2] };
}

// --- commands ------------------------------------------------------------------------------------------------

async function act(place, command, value) {
  try {
    const answer = await wire.ask(command, value);
    delete local.errors[place];
    return answer;
  } catch (error) {
    local.errors[place] = error.message;
    return undefined;
  } finally {
    draw();
  }
}

const goLive = () => act("stage", "live", !wire.state.on_air);
const privacy = () => act("stage", "privacy", wire.state.state !== "private");
const hold = () => act("stage", "hold", wire.state.state !== "held");
const switchTo = (name) => act("avatars", "switch", name);

async function neutral() {
  if (!showable()) return;
  await act("stage", "calibrate");
  say(local.errors.stage ? "" : "Neutral taken from your face now");
}

function realCamera() {
  if (wire.state.state === "pass-through") act("stage", "pass-through", { on: false });
  else if (wire.state.pass_through_asks) open("real");
  else act("stage", "pass-through", { on: true });
}

function nextAvatar() {
  const names = wire.state.avatars.filter((one) => !one.problem).map((one) => one.name);
  if (names.length > 1) switchTo(names[(names.indexOf(wire.state.chosen_avatar) + 1) % names.length]);
}

async function save() {
  const path = await act("save", "save");
  if (path) say(`Saved to ${path}`);
}

let saying = 0;
function say(sentence) {
  local.said = sentence;
  clearTimeout(saying);
  saying = setTimeout(() => {
    local.said = "";
    draw();
  }, 5000);
  draw();
}

const showable = () => !["no avatar", undefined].includes(wire.state.state);

// Sliders send at most ten values a second, the last one always.
const queue = new Map();
let sending = false;
function set(name, value) {
  local.moved[name] = { value, until: Date.now() + 800 };
  queue.set(name, value);
  draw();
  if (!sending) drain();
}
async function drain() {
  sending = true;
  while (queue.size) {
    const values = Object.fromEntries(queue);
    queue.clear();
    await act("look", "set", values);
    await new Promise((done) => setTimeout(done, 100));
  }
  sending = false;
}
function setting(name) {
  const moved = local.moved[name];
  return moved && moved.until > Date.now() ? moved.value : wire.state.settings[name];
}

async function importAvatar(file, replace = false) {
  if (!file) return;
  try {
    const { name } = await upload(`/api/avatars${replace ? "?replace=1" : ""}`, file);
    delete local.errors.avatars;
    say(`${name} was imported`);
  } catch (error) {
    if (!replace && error.message.includes("already an avatar")) {
      open("replace", { file, sentence: error.message });
      return;
    }
    local.errors.avatars = error.message;
    draw();
  }
}

async function chooseBackground(file) {
  if (!file) return;
  try {
    await upload("/api/background", file);
    delete local.errors.look;
  } catch (error) {
    local.errors.look = error.message;
  }
  draw();
}

// --- dialogs -------------------------------------------------------------------------------------------------

function open(name, about = null) {
  local.dialog = name;
  local.about = about;
  paint(); // at once: showing gives the focus to what is in it
  document.querySelector("dialog.small")?.showModal();
}
function shut() {
  document.querySelector("dialog.small")?.close();
}

const SHORTCUTS = [
  ["P", "Privacy: a still card, at once", privacy],
  ["L", "Go live, or stop", goLive],
  ["H", "Hold the picture", hold],
  ["N", "Neutral now", neutral],
  ["A", "Next avatar", nextAvatar],
  ["R", "Real camera (asks once)", realCamera],
  ["E", "Make a new avatar", () => enrol.open()],
  ["T", "Light or dark", toggleTheme],
  ["?", "This list", () => open("help")],
];

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (!local.keys || event.target.closest("input:not([type=range], [type=checkbox], [type=radio]), select, textarea")) return;
  const found = SHORTCUTS.find(([key]) => key === event.key.toUpperCase());
  if (!found) return;
  if (document.querySelector("dialog[open]") && found[0] !== "P") return;
  if (!showable() && "PLHNAR".includes(found[0])) return;
  event.preventDefault();
  found[2]();
});

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  for (const chart of Object.values(charts)) chart.repaint();
  draw();
}

// --- the page ------------------------------------------------------------------------------------------------

const key = (name) => html`<kbd aria-hidden="true">${name}</kbd>`;
const wrong = (place) =>
  local.errors[place]
    ? html`<p class="wrong" role="alert">${icons.caution}<span>${sentence(local.errors[place])}</span></p>`
    : nothing;
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function page() {
  if (wire.status === "refused") {
    return html`<main class="alone">
      ${icons.mark}
      <h1>Open the link again</h1>
      <p>This page belongs to a panel that is no longer running, or it was opened without its link. Start
        <code>understudy panel</code> and open the link it prints.</p>
    </main>`;
  }
  if (!wire.state.state) {
    return html`<main class="alone" aria-busy="true">${icons.mark}
      <p role="status">${wire.status === "lost" ? "Understudy does not answer. Trying again…" : "Connecting…"}</p></main>`;
  }
  return html`
    ${wire.status === "open"
      ? nothing
      : html`<p class="lost" role="alert">${icons.caution} The connection to Understudy is lost. What callers see is no
          longer known here. Trying again…</p>`}
    <header>
      <h1>${icons.mark}<span>Understudy</span></h1>
      <div class="tools">
        <button class="plain icon" @click=${toggleTheme} aria-label="Light or dark" title="Light or dark (T)">
          <span class="when-light">${icons.moon}</span><span class="when-dark">${icons.sun}</span></button>
        <button class="plain icon" @click=${() => open("help")} aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)">
          ${icons.help}</button>
      </div>
    </header>
    <main class=${wire.status === "open" ? "" : "stale"} ?inert=${wire.status !== "open"}>
      <div class="left">${stage()}<div class="below">${sides()} ${numbers()}</div></div>
      <div class="right">${avatars()} ${look()} ${keep()}</div>
    </main>
    <p class="said" role="status">${local.said ? html`<span>${local.said}</span>` : nothing}</p>
    ${dialog()} ${enrol.view()}
  `;
}

function stage() {
  const { state, on_air, problems } = wire.state;
  const now = situation();
  const empty = state === "no avatar";
  previews.output.want(!empty);
  return html`<section class="stage" aria-label="What callers see">
    <div class="screen" data-mode=${now.mode} data-air=${on_air ? "on" : "off"}>
      ${empty
        ? html`<div class="invitation">
            <h2>Your avatar starts with a few photos</h2>
            <p>Eight are good, one is enough. They stay on this computer; making the avatar takes about a minute.</p>
            <div class="row">
              <button class="main" @click=${() => enrol.open()}>Make an avatar</button>
              <label class="button">Import a file<input type="file" accept=".avatar" class="hidden"
                @change=${(event) => take(event, importAvatar)}></label>
            </div>
          </div>`
        : html`${previews.output.canvas}
            ${previews.output.shown ? nothing : html`<p class="veil">${now.title === "Starting" ? "Loading the avatar…" : "Waiting for the first picture…"}</p>`}`}
      ${empty ? nothing : html`<p class="badge" role="status" aria-live="assertive"><span class="lamp"></span>
        <strong>${now.title}</strong><span>${now.text}</span></p>`}
    </div>
    ${problems.length
      ? html`<ul class="problems" role="alert">${problems.map((one) => html`<li>${icons.caution}<span>${sentence(one)}</span></li>`)}</ul>`
      : nothing}
    ${wrong("stage")}
    <div class="controls" role="toolbar" aria-label="Call">
      <button class=${on_air ? "air on" : "air"} @click=${goLive} aria-pressed=${on_air} ?disabled=${empty}
        data-do="live">${on_air ? icons.stop : icons.broadcast}<span>${on_air ? "Stop" : "Go live"}</span>${key("L")}</button>
      <button class="shield" @click=${privacy} aria-pressed=${state === "private"} ?disabled=${empty} data-do="privacy">
        ${icons.shield}<span>${state === "private" ? "Show me" : "Privacy"}</span>${key("P")}</button>
      <button @click=${hold} aria-pressed=${state === "held"} ?disabled=${empty} data-do="hold">
        ${icons.pause}<span>${state === "held" ? "Go on" : "Hold"}</span>${key("H")}</button>
      <button @click=${neutral} ?disabled=${empty} data-do="neutral" title="Look relaxed into the camera, then press">
        ${icons.face}<span>Neutral now</span>${key("N")}</button>
      <button @click=${realCamera} aria-pressed=${state === "pass-through"} ?disabled=${empty} data-do="real">
        ${icons.camera}<span>Real camera</span>${key("R")}</button>
    </div>
  </section>`;
}

function sides() {
  const enrolling = Boolean(wire.state.enrolment);
  previews.camera.want(wire.state.state !== "no avatar" || enrolling);
  previews.landmarks.want(wire.state.state !== "no avatar" && !enrolling);
  if (wire.state.state === "no avatar") return nothing;
  return html`<section class="sides" aria-label="Camera and landmarks">
    <figure>
      <div class="small-screen">${enrol.shown || !setting("webcam") ? nothing : previews.camera.canvas}</div>
      <figcaption>Camera ${cameraChoice()}</figcaption>
    </figure>
    <figure>
      <div class="small-screen">${setting("webcam") ? previews.landmarks.canvas : nothing}</div>
      <figcaption>Landmarks <span class="muted">${["no face", "voice"].includes(wire.state.state) && setting("webcam") ? "no face found" : ""}</span></figcaption>
    </figure>
    ${wrong("camera")}
  </section>`;
}

function cameraChoice() {
  const now = wire.state.camera || "none";
  if (!wire.state.cameras_can_change) return html`<span class="muted" title=${now}>${now}</span>`;
  const listed = local.cameras ?? [];
  const chosen = wire.state.chosen_camera;
  const look = async () => {
    local.cameras = (await act("camera", "cameras")) ?? [];
    draw();
  };
  return html`<select aria-label="Camera" @pointerdown=${look} @focus=${look}
    @change=${(event) => act("camera", "camera", event.target.value)}>
    <option value="" ?selected=${chosen === ""}>${chosen === "" ? now : "The first one"}</option>
    ${[...new Set([...listed, ...(chosen ? [chosen] : [])])].map(
      (name) => html`<option value=${name} ?selected=${name === chosen}>${name}</option>`,
    )}
  </select>`;
}

const whole = (value, unit = "") => (value === null || value === undefined ? "–" : `${Math.round(value)}${unit}`);

function numbers() {
  const told = wire.state.numbers ?? {};
  if (!told.stages_ms) return nothing;
  const drops = Object.values(told.drops).reduce((sum, count) => sum + count, 0);
  const stage = (name, label, mark) =>
    html`<span class=${mark}>${label} ${whole(told.stages_ms[name])}</span>`;
  return html`<section class="numbers" aria-label="Numbers">
    <div class="number">
      <div><h3>${wire.state.state === "voice" ? "Sound to glass" : "Glass to glass"}</h3><p class="value">${whole(told.glass_p50_ms)}<small> ms</small></p></div>
      ${charts.glass.element}
      <p class="legend"><span class="first">median</span> <span class="third">95 % below ${whole(told.glass_p95_ms)} ms</span></p>
    </div>
    <div class="number">
      <div><h3>Pictures</h3><p class="value">${told.fps.toFixed(0)}<small> a second</small></p></div>
      ${charts.fps.element}
      <p class="legend"><span>${drops} overtaken by newer ones</span></p>
    </div>
    <div class="number">
      <div><h3>Work</h3><p class="value">${whole((told.stages_ms.tracker ?? 0) + (told.stages_ms.draw ?? 0))}<small> ms</small></p></div>
      ${charts.stages.element}
      <p class="legend">${stage("draw", "draw", "first")} ${stage("tracker", "track", "second")} ${stage("send", "send", "third")}</p>
    </div>
    <p class="muted backend" title=${told.backend}>${told.backend}</p>
  </section>`;
}

function avatars() {
  const { avatars: all, chosen_avatar: chosen, avatar: shown } = wire.state;
  const day = (text) => (text ? new Date(text).toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" }) : "");
  return html`<section class="avatars" aria-labelledby="avatars-title">
    <div class="title"><h2 id="avatars-title">Avatars</h2>
      <label class="button plain">Import<input type="file" accept=".avatar" class="hidden" aria-label="Import an avatar file"
        @change=${(event) => take(event, importAvatar)}></label></div>
    <ul class="tiles">
      ${repeat(all, (one) => one.name + one.created, (one) => html`<li class="tile" data-avatar=${one.name}>
        <button class="face" aria-pressed=${one.name === chosen} ?disabled=${Boolean(one.problem)}
          @click=${() => switchTo(one.name)} title=${one.problem ? sentence(one.problem) : `Show ${one.name}`}>
          <img src=${`/api/avatars/${encodeURIComponent(one.name)}/picture.jpg?${encodeURIComponent(one.created)}`} alt=""
            @error=${(event) => event.target.classList.add("gone")}>
          <span class="name">${one.name}</span>
          ${one.name === chosen && one.name !== shown ? html`<span class="loading">loading…</span>` : nothing}
        </button>
        <details class="menu" @focusout=${leave} @keydown=${escape} @toggle=${fit}>
          <summary class="icon" aria-label=${`More about ${one.name}`}>${icons.more}</summary>
          <div class="sheet">
            <p class="muted">${one.problem ? sentence(one.problem) : `Made ${day(one.created)}`}</p>
            <a href=${`/api/avatars/${encodeURIComponent(one.name)}/file`} download>Export</a>
            <button class="danger" @click=${() => open("delete", one.name)}>Delete…</button>
          </div>
        </details>
      </li>`)}
      <li class="tile"><button class="face new" @click=${() => enrol.open()} data-do="enrol">
        <span class="plus">${icons.plus}</span><span class="name">New</span></button></li>
    </ul>
    ${wrong("avatars")}
  </section>`;
}

function leave(event) {
  if (!event.currentTarget.contains(event.relatedTarget)) event.currentTarget.open = false;
}
function fit(event) {
  const sheet = event.currentTarget.querySelector(".sheet");
  sheet.classList.remove("rightwards");
  sheet.classList.toggle("rightwards", sheet.getBoundingClientRect().left < 8);
}
function escape(event) {
  if (event.key !== "Escape") return;
  event.currentTarget.open = false;
  event.currentTarget.querySelector("summary").focus();
}
function take(event, done) {
  done(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
}

const SLIDERS = [
  ["expression", "Expression", 0, 2, 1, "How strongly your expression is followed"],
  ["mood", "Mood", -1, 1, 0, "Added to whatever your face does: grave at the left end, a smile at the right"],
  ["blink", "Blink", 0, 1.5, 1, "How far your lids are followed"],
  ["wake", "Open tired eyes", 0, 1, 0, "How far lids that hang are lifted; blinks stay"],
  ["gaze", "Gaze", 0, 1.5, 1, "How far your gaze is followed"],
  ["contact", "Eye contact", 0, 1, 0, "How far a gaze near the camera is drawn to it"],
  ["steadiness", "Head steadiness", 0, 1, 0, "At the right end the head keeps still"],
];
const BACKGROUNDS = [
  ["photo", "Own"],
  ["blur", "Blurred"],
  ["color", "Colour"],
  ["image", "Picture"],
  ["green", "Green"],
];

function look() {
  return html`<section class="look" aria-labelledby="look-title">
    <h2 id="look-title">Look</h2>
    ${SLIDERS.map(([name, label, least, most, usual, about]) => {
      const value = setting(name);
      return html`<div class="slider">
        <label for=${name} title=${about}>${label}</label>
        <output for=${name}>${Math.round(value * 100)} %</output>
        <button class="plain reset" ?hidden=${Math.abs(value - usual) < 0.005} @click=${() => set(name, usual)}
          aria-label=${`${label} back to ${usual * 100} %`}>Reset</button>
        <input type="range" id=${name} min=${least} max=${most} step="0.05" .value=${live(String(value))}
          aria-valuetext=${`${Math.round(value * 100)} percent`} @input=${(event) => set(name, Number(event.target.value))}>
      </div>`;
    })}
    ${toggle("voice_lips", "Voice moves the lips", "While no face is seen. Your microphone stays open as long as this is on; nothing is kept or sent")}
    ${voiceNote()}
    ${toggle("webcam", "Webcam", "Off: nobody reads it. The avatar rests, or speaks by your voice")}
    ${toggle("mirror_preview", "Mirror my own camera", "As in a bathroom mirror; callers see nothing of it")}
    ${toggle("mirror_output", "Mirror what callers see", "")}
    <fieldset class="background">
      <legend>Background</legend>
      <div class="segments">
        ${BACKGROUNDS.map(
          ([name, label]) => html`<label><input type="radio" name="background" value=${name}
            .checked=${live(setting("background") === name)} @change=${() => chooseKind(name)}><span>${label}</span></label>`,
        )}
      </div>
      ${setting("background") === "color"
        ? html`<label class="colour">Colour <input type="color" .value=${live(setting("color"))}
            @input=${(event) => set("color", event.target.value)}></label>`
        : nothing}
      ${setting("background") === "image"
        ? html`<label class="button">Another picture…<input type="file" accept="image/*" class="hidden"
            @change=${(event) => take(event, chooseBackground)}></label>`
        : nothing}
      ${setting("background") === "green" ? html`<p class="muted">For a chroma key in OBS, #00ff00.</p>` : nothing}
      <input type="file" accept="image/*" class="hidden" id="background-file" tabindex="-1" aria-hidden="true"
        @change=${(event) => take(event, chooseBackground)}>
    </fieldset>
    ${wrong("look")}
  </section>`;
}

function voiceNote() {
  if (!setting("voice_lips")) return nothing;
  const { state, microphone } = wire.state;
  return html`<p class="muted voice" role="status">${state === "voice" ? "The voice moves the face now." : "The camera moves the face as long as it sees one."}
    Listening: ${microphone || "the system's microphone"}; nothing is kept or sent.</p>`;
}

function chooseKind(name) {
  if (name === "image" && !wire.state.settings.image) {
    document.getElementById("background-file").click();
    draw(); // until a picture is there, the old choice stays
  } else set("background", name);
}

const toggle = (name, label, about) => html`<label class="switch" title=${about}>
  <span>${label}</span>
  <input type="checkbox" role="switch" name=${name} .checked=${live(setting(name))}
    @change=${(event) => set(name, event.target.checked)}>
</label>`;

function keep() {
  return html`<section class="keep" aria-label="Config file">
    <button @click=${save} ?disabled=${!wire.state.unsaved} data-do="save">Save to config.toml</button>
    <p class="muted">${wire.state.unsaved
      ? "Changes last until the program ends, unless they are saved."
      : wire.state.config_exists
        ? html`Saved in <span class="path">${wire.state.config_path}</span>`
        : "Nothing was changed yet."}</p>
    ${wrong("save")}
  </section>`;
}

function dialog() {
  const about = local.about;
  const body = {
    delete: () => html`<h2>Delete ${about}?</h2>
      <p>The avatar and its contact sheet are removed from this computer. Export it first if you may want it back.</p>
      <div class="row end"><button @click=${shut} autofocus>Keep</button>
        <button class="danger filled" @click=${() => (shut(), act("avatars", "delete", about))}>Delete</button></div>`,
    real: () => html`<h2>Show your real camera?</h2>
      <p>${wire.state.on_air ? "You are live: callers will see you as you are." : "Once you go live, callers will see you as you are."}
        Press R again to return to the avatar. This is asked once.</p>
      <div class="row end"><button @click=${shut} autofocus>Stay with the avatar</button>
        <button class="main" @click=${() => (shut(), act("stage", "pass-through", { on: true, sure: true }))}>Show my camera</button></div>`,
    replace: () => html`<h2>Replace it?</h2><p>${sentence(about.sentence)}</p>
      <div class="row end"><button @click=${shut} autofocus>Keep mine</button>
        <button class="danger filled" @click=${() => (shut(), importAvatar(about.file, true))}>Replace</button></div>`,
    help: () => html`<h2>Keyboard</h2>
      <table><tbody>${SHORTCUTS.map(([name, text]) => html`<tr><td><kbd>${name}</kbd></td><td>${text}</td></tr>`)}
        <tr><td><kbd>Tab</kbd></td><td>From one control to the next</td></tr></tbody></table>
      <label class="switch"><span>Single-key shortcuts</span><input type="checkbox" role="switch" .checked=${live(local.keys)}
        @change=${(event) => {
          local.keys = event.target.checked;
          localStorage.setItem("keys", local.keys ? "on" : "off");
        }}></label>
      <div class="row end"><button class="main" @click=${shut} autofocus>Close</button></div>`,
  }[local.dialog];
  return html`<dialog class="small" @close=${() => ((local.dialog = ""), draw())}
    @click=${(event) => event.target === event.currentTarget && shut()}>${body ? html`<div>${body()}</div>` : nothing}</dialog>`;
}

// --- drawing -------------------------------------------------------------------------------------------------

let due = false;
function draw() {
  if (due) return;
  due = true;
  // Not an animation frame: the title must change in a tab that is in the background, too.
  queueMicrotask(() => {
    due = false;
    paint();
  });
}

function paint() {
  render(page(), document.getElementById("app"));
  const now = wire.state.state ? situation() : { title: "", mode: "off" };
  const lost = wire.status === "lost" ? "Not connected" : now.title;
  const air = wire.status === "open" && wire.state.on_air && now.mode === "live";
  document.title = (air ? "● " : "") + (lost ? `${lost} · Understudy` : "Understudy");
  enrol.drawn();
}

wire.addEventListener("change", () => {
  draw();
  if (wire.status === "lost" || wire.status === "refused") for (const preview of Object.values(previews)) preview.clear();
});
setInterval(() => {
  const told = wire.state.numbers;
  if (wire.status !== "open" || !told?.stages_ms || document.hidden) return;
  charts.glass.add([told.glass_p50_ms, told.glass_p95_ms]);
  charts.fps.add([told.fps]);
  charts.stages.add([told.stages_ms.draw, told.stages_ms.tracker, told.stages_ms.send]);
}, 1000);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of Object.values(charts)) chart.repaint();
});

draw();
wire.start();
