// Finding an endpoint while one types, and opening the one that the address names.

const filter = document.getElementById('endpoint-filter');
const endpoints = [...document.querySelectorAll('[data-endpoint]')];
const groups = [...document.querySelectorAll('section.card:has([data-endpoint])')];

filter.addEventListener('input', () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const endpoint of endpoints) {
    const text = endpoint.dataset.endpoint.toLowerCase();
    endpoint.hidden = !words.every((word) => text.includes(word));
  }
  for (const group of groups) group.hidden = !group.querySelector('[data-endpoint]:not([hidden])');
  const found = endpoints.filter((endpoint) => !endpoint.hidden).length;
  document.getElementById('endpoint-none').hidden = found > 0;
  document.getElementById('endpoint-count').textContent = `${found} of ${endpoints.length} endpoints`;
});

window.addEventListener('hashchange', openNamed);
openNamed();

for (const endpoint of endpoints) {
  endpoint.addEventListener('toggle', () => {
    // The address names what one looks at last, so that it can be passed on.
    if (endpoint.open) history.replaceState(null, '', `#${endpoint.id}`);
  });
}

function openNamed() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!named?.matches('[data-endpoint]')) return;
  named.open = true;
  named.scrollIntoView();
}
