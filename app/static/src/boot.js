// Runs before the first paint, hence not a module. The server has already written the theme that
// its cookie holds; localStorage outlives the cookie and wins.
(() => {
  const root = document.documentElement;
  root.dataset.js = '';
  try {
    const theme = localStorage.getItem('theme');
    if (['light', 'system', 'dark'].includes(theme)) root.dataset.theme = theme;
  } catch {
    // Storage is switched off: the cookie's theme stands.
  }
})();
