"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const [log, form, text, send, status, again, me, hint] =
    ["log", "form", "text", "send", "status", "again", "me", "hint"].map(at);
  // What the server takes as one message, in bytes.
  const limit = Number(document.body.dataset.limit);
  // So many messages are kept here.
  const most = 1000;
  const shortest = 500, longest = 30000; // ms between attempts
  const decoder = new TextDecoder(), encoder = new TextEncoder();
  let socket = null, name = "", attempts = 0, timer = 0, wasOpen = false;

  function show(state, words) {
    status.dataset.state = state;
    status.textContent = words;
    again.hidden = state !== "closed";
    me.hidden = state !== "open";
    check();
  }

  // Adds to the log, and stays at its end for whoever is there.
  function add(element) {
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    at("empty")?.remove();
    log.append(element);
    while (log.childElementCount > most) log.firstElementChild.remove();
    if (isAtEnd || element.classList.contains("own")) log.scrollTop = log.scrollHeight;
  }

  function make(kind, className, words) {
    const element = document.createElement(kind);
    element.className = className;
    // Never as HTML: it is anybody's.
    element.textContent = words;
    return element;
  }

  function notice(words) {
    add(make("p", "notice", words));
  }

  function hueOf(name) {
    // FNV-1a: names that differ in one digit differ in colour.
    let hash = 0x811c9dc5;
    for (const c of name) hash = Math.imul(hash ^ c.codePointAt(0), 0x01000193);
    return (hash >>> 8) % 360;
  }

  // A message is "NAME TEXT". One without a name is the server's, and says what this page is called.
  function hear(data) {
    const message = typeof data === "string" ? data : decoder.decode(data);
    const space = message.indexOf(" ");
    if (space === 0) {
      name = message.slice(1);
      attempts = 0;
      me.textContent = "You are " + name;
      if (wasOpen) notice("Connected again. What was said meanwhile is missing here.");
      wasOpen = true;
      show("open", "Connected");
      return;
    }
    const from = message.slice(0, space);
    const element = make("article", from === name ? "message own" : "message", "");
    const about = make("div", "about", "");
    const who = make("span", "name", from === name ? "You" : from);
    who.style.setProperty("--hue", hueOf(from));
    const now = new Date();
    const time = make("time", "", now.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
    time.dateTime = now.toISOString();
    about.append(who, time);
    element.append(about, make("div", "text", message.slice(space + 1).replace(/\r?\n$/, "")));
    add(element);
  }

  function connect() {
    clearTimeout(timer);
    if (socket && socket.readyState <= WebSocket.OPEN) return;
    show("connecting", "Connecting");
    const url = new URL("ws", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const one = socket = new WebSocket(url);
    one.binaryType = "arraybuffer";
    one.onmessage = (event) => hear(event.data);
    one.onclose = (event) => {
      if (one === socket) lost(event);
    };
  }

  function lost(event) {
    const wasConnected = status.dataset.state === "open";
    if (event.code === 1000) {
      show("closed", "You have left");
      again.ariaLabel = again.textContent = "Join again";
      notice("You have left.");
      return;
    }
    if (wasConnected) notice(event.reason ? "Disconnected: " + event.reason + "." : "Disconnected.");
    // Twice as long each time, and by chance: a server that comes back is not met by all at once.
    const wait = Math.min(longest, shortest * 2 ** attempts) * (0.5 + Math.random() / 2);
    attempts += 1;
    const end = Date.now() + wait;
    show("closed", "Disconnected");
    again.ariaLabel = "Connect now";
    const count = () => {
      const left = Math.ceil((end - Date.now()) / 1000);
      if (left <= 0) return connect();
      // On the button, whose label stays: a status that changes would be read out each second.
      again.textContent = "Connect now (" + left + " s)";
      timer = setTimeout(count, Math.min(1000, end - Date.now()));
    };
    count();
  }

  // Whether what is typed can be sent, and why not.
  function check() {
    const bytes = encoder.encode(text.value + "\n").length;
    hint.textContent = bytes > limit ? "This is too long by " + (bytes - limit) + " bytes." : "";
    send.disabled = status.dataset.state !== "open" || bytes > limit || text.value.trim() === "";
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    check();
    if (send.disabled) return;
    // As the lines of a terminal end.
    socket.send(text.value + "\n");
    text.value = "";
    check();
    text.focus();
  });
  text.addEventListener("input", check);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  again.addEventListener("click", connect);
  addEventListener("online", () => {
    if (!again.hidden && timer) connect();
  });
  // A page that comes back from the browser's cache has lost its connection.
  addEventListener("pageshow", (event) => {
    if (event.persisted) connect();
  });
  connect();
  text.focus();
})();
