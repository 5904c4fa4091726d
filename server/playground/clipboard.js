/** Copies text; returns whether it worked. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  }
  // Over plain HTTP, browsers offer the clipboard API only to pages from localhost.
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
