// What other scripts need of the page around them: its announcer, its address, its icons.

// For screen readers: says what changed without moving the focus.
export function announce(text) {
  const place = document.getElementById('announcer');
  if (place && text) place.textContent = text;
}

// Where the application is mounted, taken from the brand's link to the dashboard.
export function basePath() {
  return (document.querySelector('.brand')?.getAttribute('href') ?? '/').replace(/\/$/, '');
}

// Creates an icon of the sprite that the page itself uses.
export function icon(name) {
  const namespace = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(namespace, 'svg');
  const use = document.createElementNS(namespace, 'use');
  const sprite = document.querySelector('svg.icon use')?.getAttribute('href').split('#')[0] ?? '';
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `${sprite}#${name}`);
  svg.append(use);
  return svg;
}
