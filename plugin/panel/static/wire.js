// The connection to the program: state in, commands out, made anew when it is lost.

const RETRY_MS = [250, 500, 1000, 2000, 4000];

export class Wire extends EventTarget {
  state = {};
  /** "connecting", "open", "lost" or "refused". */
  status = "connecting";
  #socket = null;
  #waiting = new Map();
  #next = 1;
  #tries = 0;

  async start() {
    const token = location.hash.slice(1);
    if (token) history.replaceState(null, "", location.pathname); // out of the address bar and the history
    try {
      const response = await fetch("/api/session", { method: "POST", body: token });
      if (!response.ok) return this.#set("refused");
    } catch {
      if (token) sessionStorage.setItem("token", token);
      return this.#lost();
    }
    this.#open();
  }

  #open() {
    const socket = new WebSocket(`ws://${location.host}/api/live`);
    this.#socket = socket;
    socket.onopen = () => {
      this.#tries = 0;
      this.#set("open");
    };
    socket.onmessage = (event) => this.#hear(JSON.parse(event.data));
    socket.onclose = () => this.#lost();
  }

  #lost() {
    for (const { refuse } of this.#waiting.values()) refuse(new Error("the connection to Understudy was lost"));
    this.#waiting.clear();
    this.#set("lost");
    const wait = RETRY_MS[Math.min(this.#tries++, RETRY_MS.length - 1)];
    setTimeout(() => this.#again(), wait);
  }

  async #again() {
    try {
      const body = sessionStorage.getItem("token") ?? "";
      const response = await fetch("/api/session", { method: "POST", body });
      if (!response.ok) return this.#set("refused"); // started anew meanwhile: its link has another token
    } catch {
      return this.#lost();
    }
    sessionStorage.removeItem("token");
    this.#open();
  }

  #set(status) {
    this.status = status;
    this.dispatchEvent(new Event("change"));
  }

  #hear(message) {
    if (message.state) {
      this.state = { ...this.state, ...message.state };
      this.dispatchEvent(new Event("change"));
      return;
    }
    const asked = this.#waiting.get(message.id);
    this.#waiting.delete(message.id);
    if (!asked) return;
    if (message.error) asked.refuse(new Error(message.error));
    else asked.keep(message.answer);
  }

  /** A command; the promise is refused with one sentence. */
  ask(command, value = null) {
    return new Promise((keep, refuse) => {
      if (this.#socket?.readyState !== WebSocket.OPEN) return refuse(new Error("there is no connection to Understudy"));
      const id = this.#next++;
      this.#waiting.set(id, { keep, refuse });
      this.#socket.send(JSON.stringify({ id, do: command, value }));
    });
  }
}

/** A file sent; resolves to the answer, or throws one sentence. `progress` hears 0..1. */
export function upload(path, file, headers = {}, progress = () => {}) {
  return new Promise((keep, refuse) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onload = () =>
      request.status < 300
        ? keep(request.response)
        : refuse(new Error(request.response?.error ?? "the file could not be sent"));
    request.onerror = () => refuse(new Error("the file could not be sent: it is too large, or the connection was lost"));
    request.send(file);
  });
}
