// A live picture. Frames are asked for one by one, and only while somebody can see them.

export class Preview {
  /** Whether there is a picture at all. */
  shown = false;
  #socket = null;
  #wanted = false;
  #inView = false;
  #retry = 0;

  constructor(view, label, changed) {
    this.view = view;
    this.changed = changed;
    this.canvas = document.createElement("canvas");
    this.canvas.width = 16;
    this.canvas.height = 9;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", label);
    this.canvas.dataset.view = view;
    this.canvas.dataset.frames = "0";
    new IntersectionObserver((entries) => {
      this.#inView = entries.at(-1).isIntersecting;
      this.#look();
    }).observe(this.canvas);
    document.addEventListener("visibilitychange", () => this.#look());
  }

  want(on) {
    if (on === this.#wanted) return;
    this.#wanted = on;
    this.#look();
  }

  #look() {
    const on = this.#wanted && this.#inView && !document.hidden;
    if (on && !this.#socket) this.#open();
    if (!on && this.#socket) {
      this.#socket.onclose = null;
      this.#socket.close();
      this.#socket = null;
    }
  }

  #open() {
    const socket = new WebSocket(`ws://${location.host}/api/preview?view=${this.view}`);
    socket.binaryType = "blob";
    const ask = () => {
      const width = Math.ceil(this.canvas.clientWidth * Math.min(devicePixelRatio, 2));
      if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ width }));
    };
    socket.onopen = ask;
    socket.onmessage = async (event) => {
      try {
        const picture = await createImageBitmap(event.data);
        if (this.canvas.width !== picture.width || this.canvas.height !== picture.height) {
          this.canvas.width = picture.width;
          this.canvas.height = picture.height;
        }
        this.canvas.getContext("2d").drawImage(picture, 0, 0);
        picture.close();
        this.canvas.dataset.frames = String(Number(this.canvas.dataset.frames) + 1);
        this.#show(true);
      } catch {
        // a frame that was cut off: the next one follows
      }
      ask();
    };
    socket.onclose = () => {
      this.#socket = null;
      clearTimeout(this.#retry);
      this.#retry = setTimeout(() => this.#look(), 1000);
    };
    this.#socket = socket;
  }

  #show(on) {
    if (on === this.shown) return;
    this.shown = on;
    this.changed();
  }

  /** Forget the last picture: what it showed is over. */
  clear() {
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.#show(false);
  }
}
