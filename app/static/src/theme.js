// Light, system or dark: applied at once, remembered here and for the server, the same in all tabs.

import { basePath } from './page.js';

const YEAR_SECONDS = 365 * 24 * 60 * 60;

export function startTheme() {
  const form = document.querySelector('[data-theme-form]');
  form?.addEventListener('submit', (event) => {
    event.preventDefault();
    if (event.submitter?.value) chooseTheme(event.submitter.value);
  });
  window.addEventListener('storage', (event) => {
    if (event.key === 'theme' && event.newValue) apply(event.newValue);
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', announce);
  apply(document.documentElement.dataset.theme);
}

function chooseTheme(theme) {
  try {
    localStorage.setItem('theme', theme);
  } catch {
    // Storage is switched off; the cookie remembers.
  }
  document.cookie = `theme=${theme}; Path=${basePath() || '/'}; Max-Age=${YEAR_SECONDS}; SameSite=Lax`;
  apply(theme);
}

function apply(theme) {
  document.documentElement.dataset.theme = theme;
  for (const button of document.querySelectorAll('[data-theme-form] button')) {
    button.setAttribute('aria-pressed', String(button.value === theme));
  }
  announce();
}

// Charts draw with the colours of the moment, so they want to know.
function announce() {
  document.dispatchEvent(new CustomEvent('theme:changed'));
}
