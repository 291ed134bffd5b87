// The server's API key, kept until the tab is closed.

const NAME = "sightline.key";

/** A function that does what needs the key, and asks for one as often as the server refuses. */
export function keyAsker(ui) {
  let asking = null;

  ui.keyForm.addEventListener("submit", (event) => {
    event.preventDefault();
    ui.keyDialog.close(ui.key.value.trim());
  });
  ui.keyCancel.addEventListener("click", () => ui.keyDialog.close(""));

  /** Resolves to the key, empty if none was given. */
  function ask(wasRefused) {
    ui.keyProblem.hidden = !wasRefused;
    ui.keyDialog.returnValue = "";
    ui.keyDialog.showModal();
    return new Promise((resolve) => ui.keyDialog.addEventListener("close", () => {
      const key = ui.keyDialog.returnValue;
      ui.key.value = "";
      ui.keyDialog.returnValue = "";
      if (key) sessionStorage.setItem(NAME, key);
      ui.text.focus();
      resolve(key);
    }, { once: true }));
  }

  return async (act) => {
    for (;;) {
      const key = sessionStorage.getItem(NAME);
      try {
        return await act(key);
      } catch (problem) {
        if (problem.status !== 401) throw problem;
        if (key !== sessionStorage.getItem(NAME)) continue; // another request has asked meanwhile
        asking ??= ask(key !== null).finally(() => (asking = null));
        if (!(await asking)) throw problem;
      }
    }
  };
}
