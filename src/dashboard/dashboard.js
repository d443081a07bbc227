// Puts the page together: the connection and what it says of itself, the sections, and the way between them.

import { say, byId, clock, duration } from "./dom.js";
import { Live } from "./live.js";
import { Status } from "./status.js";
import { mentions } from "./mentions.js";
import { accuracy, bronze, rejects } from "./data.js";
import { agreement } from "./agreement.js";
import { events } from "./events.js";

/** For how long a lost connection counts as a hiccup. */
const PATIENCE_MS = 3_000;

const live = new Live();
showConnection();
new Status(live);
mentions(live);
bronze(live);
accuracy(live);
agreement(live);
rejects(live);
events(live);
navigate();
live.start();

function showConnection() {
  const pill = document.querySelector(".connection");
  const away = byId("away");
  const form = document.querySelector(".token");
  const draw = () => {
    const { state, since } = live;
    const gone = state !== "live" && state !== "unauthorized" && Date.now() - since > PATIENCE_MS;
    const words = {
      live: "Live",
      connecting: "Connecting",
      reconnecting: "Reconnecting",
      unauthorized: "Token needed",
    }[state];
    pill.dataset.state = gone ? "away" : state;
    say(pill, gone ? `Server away since ${clock(since)}` : words);
    document.body.classList.toggle("stale", state === "reconnecting" || gone);
    away.hidden = !gone;
    say(
      away,
      gone
        ? `The server has been away for ${duration(Math.floor((Date.now() - since) / 1000) * 1000)}. What you see is as of ${clock(since)}; this page goes on by itself when the server is back.`
        : "",
    );
    // Told once a change, not each second.
    say(byId("announce"), gone ? "The server is away." : state === "live" ? "Connected." : "");
  };
  live.addEventListener("state", draw);
  live.addEventListener("tick", draw);
  live.addEventListener("state", () => {
    const locked = live.state === "unauthorized";
    form.hidden = !locked;
    byId("sections").hidden = locked;
    document.querySelector("nav").hidden = locked;
    if (!locked) return;
    say(form.querySelector(".error"), live.hasToken ? "The server does not know this token." : "");
    byId("token").focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    live.token = byId("token").value;
  });
  draw();
}

/** Marks in the navigation where the reader is. */
function navigate() {
  const links = [...document.querySelectorAll("nav a")];
  const seen = new Set();
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) isIntersecting ? seen.add(target.id) : seen.delete(target.id);
      const here = links.find((link) => seen.has(sectionOf(link)));
      if (!here) return;
      for (const link of links) {
        if (link === here) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
      // On a phone the links are a strip: the current one stays in sight. Only the strip scrolls, not the page.
      const strip = here.closest("ul");
      if (strip.scrollWidth > strip.clientWidth)
        strip.scrollLeft = here.offsetLeft - strip.clientWidth / 2 + here.offsetWidth / 2;
    },
    { rootMargin: "-25% 0px -65% 0px" },
  );
  for (const section of document.querySelectorAll("#sections > section")) observer.observe(section);

  // Sections grow when their answers come. Until the reader does something, the one gone to stays in its place.
  let target = null;
  let over;
  const stay = () => target?.scrollIntoView({ block: "start", behavior: "instant" });
  const stop = () => {
    target = null;
  };
  new ResizeObserver(stay).observe(byId("sections"));
  for (const act of ["wheel", "touchstart", "keydown", "pointerdown"]) addEventListener(act, stop, { passive: true });
  const go = () => {
    target = byId(location.hash.slice(1).split("/")[0])?.closest("#sections > section") ?? null;
    stay();
    clearTimeout(over);
    over = setTimeout(stop, 5_000);
  };
  addEventListener("hashchange", go);
  go();
}

function sectionOf(link) {
  return link.hash.slice(1).split("/")[0];
}
