// Runs before the page is painted, so that a chosen theme does not flash. Without a choice the system's holds.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const read = () => {
    try {
      return localStorage.getItem("assay-theme");
    } catch {
      return null;
    }
  };
  const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const chosen = read();
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector(".theme");
    const tell = () => {
      button.setAttribute("aria-pressed", String(dark()));
      dispatchEvent(new Event("themechange"));
    };
    button.addEventListener("click", () => {
      const theme = dark() ? "light" : "dark";
      document.documentElement.dataset.theme = theme;
      try {
        localStorage.setItem("assay-theme", theme);
      } catch {
        /* it lasts as long as the page */
      }
      tell();
    });
    system.addEventListener("change", tell);
    tell();
  });
})();
