// The one-time ticket that the socket needs. Whoever is not logged in any more goes to the login page.

/** Gives a function that asks the server for a ticket. */
export function newTicket(base, { fetch = globalThis.fetch, location = globalThis.location } = {}) {
  return async () => {
    const answer = await fetch(new URL("api/ticket", base), { method: "POST" });
    if (answer.status === 401) location.assign(new URL("login", base));
    if (!answer.ok) throw new Error(`no ticket: ${answer.status}`);
    return (await answer.json()).ticket;
  };
}
