// Runs once per HTML block. A click on one of its buttons becomes the event of the button's kind:
const events = { token: "select", concept: "click", colour: "apply", steer: "edit" };
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-kind]");
  if (!button) return;
  if (button.dataset.kind === "token") {
    for (const token of element.querySelectorAll(".cx-token")) {
      token.setAttribute("aria-pressed", String(token === button));
      token.tabIndex = token === button ? 0 : -1;
    }
  }
  trigger(events[button.dataset.kind], { value: button.dataset.value });
});
// Arrow keys move among the tokens of a text.
element.addEventListener("keydown", (event) => {
  const tokens = [...element.querySelectorAll(".cx-token")];
  const place = tokens.indexOf(event.target.closest(".cx-token"));
  if (place < 0) return;
  const last = tokens.length - 1;
  const next = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  tokens[Math.max(0, Math.min(last, next))].focus();
});
