// The page's drawings, all of one line width, in the colour of the text.

const PATHS = {
  mic: '<path d="M12 3a3 3 0 0 0-3 3v6a3 3 0 0 0 6 0V6a3 3 0 0 0-3-3Z"/><path d="M5 11a7 7 0 0 0 14 0M12 18v3"/>',
  stop: '<rect x="6" y="6" width="12" height="12" rx="2.5" fill="currentColor" stroke="none"/>',
  end: '<path d="M7 7l10 10M17 7 7 17"/>',
  send: '<path d="m5 12 14-7-5 14-3-6-6-1Z"/>',
  plus: '<path d="M12 5v14M5 12h14"/>',
  download: '<path d="M12 4v11m-4.5-4.5L12 15l4.5-4.5M5 20h14"/>',
  sliders: '<path d="M4 8h9m5 0h2M4 16h2m5 0h9"/><circle cx="15.5" cy="8" r="2.2"/><circle cx="8.5" cy="16" r="2.2"/>',
  play: '<path d="M8.5 5.5v13l10-6.5Z" fill="currentColor"/>',
  file: '<path d="M12 16V5m-4.5 4.5L12 5l4.5 4.5M5 19.5h14"/>',
  pencil: '<path d="m5 19 1-4L16.5 4.5l3 3L9 18l-4 1Z"/>',
  bin: '<path d="M5 7h14M10 7V4.5h4V7M7 7l1 12.5h8L17 7"/>',
  check: '<path d="m5 12.5 4.5 4.5L19 7.5"/>',
};

/** The drawing `name` as SVG text; screen readers pass over it. */
export const icon = (name) =>
  `<svg viewBox="0 0 24 24" width="20" height="20" fill="none" stroke="currentColor" stroke-width="1.8" ` +
  `stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">${PATHS[name]}</svg>`;
