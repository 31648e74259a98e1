// The routes for voices of one's own. Uploads go from here to the server's own routes, with the login's cookie.

/** Why a request came to nothing. `status` 0: no answer at all. */
export class ApiProblem extends Error {
  constructor({ status, code = "", message = "", retryAfterS = null }) {
    super(message);
    Object.assign(this, { status, code, retryAfterS });
  }
}

async function problemOf(answer) {
  const body = await answer.json().catch(() => ({}));
  const { code = "", message = "", retry_after_s: waitS } = body.error ?? {};
  const header = Number(answer.headers.get("Retry-After")) || null;
  return new ApiProblem({ status: answer.status, code: code ?? "", message, retryAfterS: waitS ?? header });
}

export class VoicesApi {
  constructor(base, { fetch = globalThis.fetch.bind(globalThis) } = {}) {
    Object.assign(this, { base, fetch });
  }

  async #ask(method, path, { json, form, signal } = {}) {
    const init = { method, signal, cache: "no-store" };
    if (json) Object.assign(init, { body: JSON.stringify(json), headers: { "Content-Type": "application/json" } });
    if (form) init.body = form;
    let answer;
    try {
      answer = await this.fetch(new URL(path, this.base), init);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiProblem({ status: 0, code: "network" });
    }
    if (!answer.ok) throw await problemOf(answer);
    return answer;
  }

  async #json(...request) {
    return (await this.#ask(...request)).json();
  }

  about = () => this.#json("GET", "api/clone");

  voices = async () => (await this.#json("GET", "api/voices")).data;

  /** Sends a recording to be looked at; trim: {start, end} in seconds, or null for the whole file; an end of null is the file's. */
  check(blob, { trim = null, phraseId = null, signal }) {
    const form = new FormData();
    if (trim) form.append("start_s", trim.start.toFixed(3));
    if (trim?.end) form.append("end_s", trim.end.toFixed(3));
    if (phraseId) form.append("phrase_id", phraseId);
    form.append("file", blob, "recording"); // what a file is called is nobody's business
    return this.#json("POST", "api/clone/samples", { form, signal });
  }

  dropSample = (id) => this.#ask("DELETE", `api/clone/samples/${id}`);

  phrase = (language) => this.#json("POST", "api/clone/phrase", { json: language ? { language } : {} });

  create = (voice) => this.#json("POST", "api/clone", { json: voice });

  rename = (id, name) => this.#json("PATCH", `api/voices/${id}`, { json: { name } });

  remove = (id) => this.#ask("DELETE", `api/voices/${id}`);

  sample = async (id) => (await this.#ask("GET", `api/voices/${id}/sample`)).blob();

  /** A WAV file of this sentence in this voice. */
  async speak(text, voice, signal) {
    const answer = await this.#ask("POST", "api/tts", { json: { text, voice, format: "wav" }, signal });
    try {
      return await answer.arrayBuffer();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiProblem({ status: 0, code: "network" });
    }
  }
}
