// Making an avatar: photos from files or from the webcam, a verdict for each, then the avatar.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { live } from "./vendor/lit-html/directives/live.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import * as icons from "./icons.js";
import { upload } from "./wire.js";

const MARKS = { accepted: [icons.good, "good"], warned: [icons.caution, "usable"], refused: [icons.bad, "not usable"], waiting: [nothing, "looking"] };

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

export class EnrolDialog {
  shown = false;
  #error = "";
  #name = "";
  #agreed = false;
  #replace = false;
  #dragging = false;
  #sending = new Map();
  #begun = false; // the program knows of this enrolment
  #leaving = false; // it was left here, and the program is still to say so

  constructor(wire, previews, draw) {
    this.wire = wire;
    this.preview = previews.camera;
    this.draw = draw;
  }

  get #state() {
    return this.wire.state.enrolment;
  }

  async #ask(command, value) {
    try {
      const answer = await this.wire.ask(`enrol ${command}`, value);
      this.#error = "";
      return answer ?? true;
    } catch (error) {
      this.#error = error.message;
      return undefined;
    } finally {
      this.draw();
    }
  }

  async open() {
    this.#name = "";
    this.#agreed = this.#replace = false;
    this.shown = true;
    this.#begun = this.#leaving = false;
    this.draw();
    await this.#ask("begin");
  }

  async close(command = "cancel") {
    this.shown = false;
    this.#leaving = true;
    this.#sending.clear();
    document.querySelector("dialog.enrol")?.close();
    await this.#ask(command);
  }

  async #send(files) {
    for (const file of files) {
      const key = Symbol(file.name);
      this.#sending.set(key, { name: file.name, share: 0 });
      this.draw();
      try {
        await upload("/api/enrolment/photos", file, { "X-Name": encodeURIComponent(file.name) }, (share) => {
          if (this.#sending.has(key)) this.#sending.get(key).share = share;
          this.draw();
        });
        this.#error = "";
      } catch (error) {
        this.#error = error.message;
      }
      this.#sending.delete(key);
      this.draw();
    }
  }

  /** After each drawing: a dialog can be shown only once it is in the page. */
  drawn() {
    const dialog = document.querySelector("dialog.enrol");
    if (!dialog) return;
    if (!this.#state) {
      this.#leaving = false;
      if (this.shown && this.#begun) {
        this.shown = this.#begun = false; // it was ended from another page
        dialog.close();
        this.draw();
      }
    } else if (this.shown) {
      this.#begun = true;
    } else if (!this.#leaving) {
      this.shown = this.#begun = true; // it was going on when this page was opened
      this.draw();
      return;
    }
    if (this.shown && !dialog.open) dialog.showModal();
  }

  view() {
    const state = this.#state;
    return html`<dialog class="enrol" aria-labelledby="enrol-title"
      @cancel=${(event) => {
        event.preventDefault();
        if (!state?.photos.length && !state?.progress) this.close();
      }}
      @dragover=${(event) => {
        event.preventDefault();
        this.#dragging = true;
        this.draw();
      }}
      @dragleave=${() => {
        this.#dragging = false;
        this.draw();
      }}
      @drop=${(event) => {
        event.preventDefault();
        this.#dragging = false;
        this.#send([...event.dataTransfer.files]);
      }}>
      ${this.shown ? this.#inside(state) : nothing}
    </dialog>`;
  }

  #inside(state) {
    return html`<div class=${this.#dragging ? "inside dragging" : "inside"}>
      <div class="title">
        <h2 id="enrol-title">${state?.made ? `${state.made} is ready` : state?.progress ? `Making ${state.name}` : "New avatar"}</h2>
        ${state?.made ? nothing : html`<button class="plain" @click=${() => this.close()} data-do="cancel">Cancel</button>`}
      </div>
      ${state?.made ? this.#ready(state) : state?.progress ? this.#making(state) : this.#collecting(state)}
    </div>`;
  }

  #errors(state) {
    const said = this.#error || state?.error;
    return said ? html`<p class="wrong" role="alert">${icons.caution}<span>${sentence(said)}</span></p>` : nothing;
  }

  #collecting(state) {
    const photos = state?.photos ?? [];
    const usable = photos.filter((photo) => photo.verdict === "accepted" || photo.verdict === "warned").length;
    const waiting = photos.some((photo) => photo.verdict === "waiting") || this.#sending.size > 0;
    return html`
      <div class="ways">
        <div class="way">
          <div class="mirror" data-fits=${state?.fits ? "yes" : "no"}>
            ${state?.watching
              ? html`${this.preview.canvas}<span class="oval" aria-hidden="true"></span>`
              : html`<div class="off">${icons.camera}<button @click=${() => this.#ask("watch", true)} data-do="watch">Use the webcam</button></div>`}
          </div>
          ${state?.watching
            ? html`<p class="hint" role="status">${state.hint || "One moment…"}</p>
                <div class="row">
                  <button class="main" @click=${() => this.#ask("take")} data-do="take">Take photo</button>
                  <button class="plain" @click=${() => this.#ask("watch", false)}>Webcam off</button>
                </div>
                <label class="switch"><span>Take it by itself when the pose is right</span>
                  <input type="checkbox" role="switch" .checked=${live(state.takes_by_itself)}
                    @change=${(event) => this.#ask("by itself", event.target.checked)}></label>`
            : nothing}
        </div>
        <div class="way">
          <label class="dropzone">${icons.drop}<strong>Drop photos here</strong>
            <span class="muted">or choose files: photos, or a short video</span>
            <input type="file" multiple accept="image/*,video/*,.heic" class="hidden" data-do="files"
              @change=${(event) => {
                this.#send([...event.target.files]);
                event.target.value = "";
              }}></label>
          ${photos.length && state.advice.length && !waiting
            ? html`<div class="advice"><h3>Would help</h3><ul>${state.advice.map((wish) => html`<li>${sentence(wish)}</li>`)}</ul></div>`
            : photos.length
              ? nothing
              : html`<div class="advice"><h3>What works best</h3><ul>
                  <li>Daylight from the front, the whole head in the picture.</li>
                  <li>Front, a little left, a little right, up and down.</li>
                  <li>A smile with teeth, an open mouth, shut eyes.</li></ul></div>`}
        </div>
      </div>
      ${this.#errors(state)}
      <ul class="photos" aria-label="Photos">
        ${repeat(
          photos,
          (photo) => `${photo.id}-${photo.part ?? 0}-${photo.verdict === "waiting"}`,
          (photo) => this.#photo(photo),
        )}
        ${[...this.#sending.values()].map(
          (one) => html`<li class="photo waiting"><span class="thumb"></span><div><strong>${one.name}</strong>
            <progress max="1" .value=${one.share} aria-label=${`Sending ${one.name}`}></progress></div></li>`,
        )}
      </ul>
      <form class="finish" @submit=${(event) => {
        event.preventDefault();
        this.#ask("build", { name: this.#name, replace: this.#replace });
      }}>
        <label>Name <input type="text" maxlength="64" required autocomplete="off" spellcheck="false" placeholder="me" name="name"
          .value=${live(this.#name)} @input=${(event) => {
            this.#name = event.target.value;
            this.draw();
          }}></label>
        ${this.#error.includes("tick replace")
          ? html`<label class="tick"><input type="checkbox" .checked=${live(this.#replace)} @change=${(event) => {
              this.#replace = event.target.checked;
            }}> Replace the one that is there</label>`
          : nothing}
        <label class="tick"><input type="checkbox" required name="agreed" .checked=${live(this.#agreed)} @change=${(event) => {
          this.#agreed = event.target.checked;
          this.draw();
        }}> This is me, or someone who agreed to it</label>
        <button class="main" ?disabled=${!usable || waiting || !this.#agreed || !this.#name.trim()} data-do="build">
          ${usable ? `Make the avatar from ${usable} ${usable === 1 ? "photo" : "photos"}` : "Make the avatar"}</button>
      </form>`;
  }

  #photo(photo) {
    const [mark, word] = MARKS[photo.verdict];
    return html`<li class=${`photo ${photo.verdict}`} data-verdict=${photo.verdict}>
      <span class="thumb">${photo.thumbnail ? html`<img src=${`/api/enrolment/thumbnail/${photo.thumbnail}`} alt="">` : nothing}</span>
      <div>
        <strong>${photo.name}</strong>
        <p class="verdict"><span class="mark">${mark}</span> ${
          photo.verdict === "waiting" ? "Being looked at…" : photo.reasons.length ? photo.reasons.map(sentence).join(" ") : "Good."
        }<span class="sr"> (${word})</span></p>
      </div>
      ${photo.verdict === "waiting"
        ? nothing
        : html`<button class="plain icon" aria-label=${`Remove ${photo.name}`} @click=${() => this.#ask("forget", photo.id)}>${icons.bad}</button>`}
    </li>`;
  }

  #making(state) {
    const { stage, done, total } = state.progress;
    return html`<div class="making">
      <div class="strip">${state.photos
        .filter((photo) => photo.thumbnail && photo.verdict !== "refused")
        .slice(0, 8)
        .map((photo) => html`<img src=${`/api/enrolment/thumbnail/${photo.thumbnail}`} alt="">`)}</div>
      ${total > 1
        ? html`<progress max=${total} value=${done} aria-label=${stage}></progress>`
        : html`<progress aria-label=${stage}></progress>`}
      <p role="status">${sentence(stage).replace(/\.$/, "")}${total > 1 ? ` · ${done} of ${total}` : ""}</p>
      <p class="muted">You can leave this open; cancelling leaves nothing behind.</p>
    </div>`;
  }

  #ready(state) {
    return html`<div class="ready">
      <img src=${`/api/avatars/${encodeURIComponent(state.made)}/picture.jpg?${Date.now() >> 20}`} alt=${`${state.made}, as enrolled`}>
      ${state.advice.length
        ? html`<p class="muted">Would make it better: ${state.advice[0]}.</p>`
        : html`<p class="muted">No pose is missing.</p>`}
      <div class="row"><button class="main" @click=${() => this.close("use")} data-do="use">Show ${state.made}</button>
        <button @click=${() => this.close()}>Done</button></div>
    </div>`;
  }
}
