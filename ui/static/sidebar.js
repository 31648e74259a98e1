// Gradio's sidebar covers a whole phone, so it starts closed; where there is room it is opened once.

const WIDE_PX = 1200;

export function openSidebarOnWideScreens() {
  if (window.innerWidth < WIDE_PX) return;
  const sidebar = document.querySelector(".sidebar");
  if (sidebar && !sidebar.classList.contains("open")) sidebar.querySelector(".toggle-button")?.click();
}
