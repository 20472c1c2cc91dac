"use strict";

const form = document.getElementById("ask");
const status = document.getElementById("status");
let asked = 0; // An answer that comes after a newer question is left aside.

function say(text, state) {
  status.textContent = text;
  status.dataset.state = state;
}

// Titles are text, whatever they hold.
function fill(id, entries) {
  document.getElementById(id).replaceChildren(...entries);
}

function entry(...parts) {
  const line = document.createElement("li");
  line.append(...parts);
  return line;
}

function recommended(item) {
  const bar = document.createElement("meter");
  bar.value = item.probability;
  const note = document.createElement("span");
  note.className = "note";
  note.textContent = ` ${item.probability.toFixed(3)}, candidate ${item.collaborative_rank}`;
  return entry(bar, item.title, note);
}

async function ask() {
  const question = ++asked;
  const user = form.elements.user.value;
  if (!user) return;
  say("…", "waiting");
  let problem = null, answer = null;
  try {
    const response = await fetch("recommend", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ user, delta: form.elements.delta.checked }),
    });
    const body = await response.json();
    if (response.ok) answer = body;
    else problem = body.detail;
  } catch (error) {
    problem = "the server does not answer";
  }
  if (question !== asked) return;
  fill("history", answer ? answer.history.toReversed().map((title) => entry(title)) : []);
  fill("items", answer ? answer.items.map(recommended) : []);
  if (problem) say(problem, "problem");
  else if (!answer.known) say(`User ${answer.user} is unknown: what the mean user is recommended.`, "answer");
  else say(`User ${answer.user}, ${answer.delta ? "with weights of their own" : "the language model alone"}.`, "answer");
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
form.elements.delta.addEventListener("change", ask);
