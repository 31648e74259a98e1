"""From a press of Interrupt to silence, in Chromium, on the real page with a scripted server.

    python -m benchmarks.interrupt_button

The clock runs from the click to the player worklet's word that nothing plays any more, so the way back from the audio
thread is counted too; the output latency that the browser reports is added.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.conversation import spread
from tests.support.browser import VoicePage, chromium, write_microphone
from tests.support.scripted_server import running_server

N_PRESSES = 20
PRESS = """async () => {
  const voice = document.querySelector('.voicepod-host').voicepod;
  const button = voice.root.getElementById('interrupt');
  const from = performance.now();
  button.click();
  const tick = new MessageChannel();
  while (voice.player.playing) {
    await new Promise((go) => { tick.port1.onmessage = go; tick.port2.postMessage(0); });
  }
  return performance.now() - from;
}"""


def main() -> None:
    """Press, measure, print."""
    with tempfile.TemporaryDirectory() as folder, running_server() as running, sync_playwright() as playwright:
        microphone = write_microphone(Path(folder) / "silence.wav", [], lead_in_s=60.0)
        with chromium(playwright, microphone=microphone) as browser:
            page = VoicePage(browser.new_context(), running.url).open()
            page.button("Start").click()
            page.wait_for_state("listening")
            presses = []
            for i in range(N_PRESSES):
                page.type(f"Tell me more, number {i}.")
                page.wait_inside("voice.player.playing && voice.player.position && voice.player.position.played > 4800")
                presses.append(float(page.page.evaluate(PRESS)))
                page.wait_for_state("listening")
            latency_s = page.inside("voice.player.context.outputLatency || voice.player.context.baseLatency")
    print(f"press to silence in the player, ms: {spread(presses)}; output latency {1000 * float(latency_s or 0):.0f}")


if __name__ == "__main__":
    main()
