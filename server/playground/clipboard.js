/** Copies a text; says whether that worked. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  }
  // Browsers have no clipboard for pages over plain http from elsewhere than this machine.
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  const within = document.querySelector("dialog[open]") ?? document.body;
  const focused = /** @type {HTMLElement | null} */ (document.activeElement);
  within.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}
