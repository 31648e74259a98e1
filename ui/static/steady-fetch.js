// Loaded before Gradio. When one of its calls cannot reach the server, Gradio says "Connection Lost" and reloads the page as
// soon as the server is back: that would end a talk which the page has long resumed. The sidebar asks every two seconds,
// so each short gap of the network would do it. Such a call now waits and is sent again; it never fails.

(() => {
  const FIRST_WAIT_MS = 500;
  const MAX_WAIT_MS = 8000;
  const send = window.fetch.bind(window);

  window.fetch = async (input, init) => {
    const address = input instanceof Request ? input.url : String(input);
    if (!address.includes("/gradio_api/run/")) return send(input, init);
    for (let wait = FIRST_WAIT_MS; ; wait = Math.min(MAX_WAIT_MS, 2 * wait)) {
      try {
        return await send(input instanceof Request ? input.clone() : input, init);
      } catch (error) {
        if (error.name === "AbortError") throw error;
        await new Promise((resolve) => {
          setTimeout(resolve, wait);
        });
      }
    }
  };
})();
