// Filters by time are meant in the viewer's zone. Without scripts they are UTC, as the labels say.
//
//   <input type="hidden" name="tz" data-zone>   the zone of the form's times; kept where times came
//   <span data-zone-name>                       with the address, so that a link means one moment
//   <input type="datetime-local" data-zone-time>

export function startZones() {
  for (const field of document.querySelectorAll('[data-zone]')) watch(field);
}

function watch(field) {
  const { form } = field;
  const times = [...form.querySelectorAll('[data-zone-time]')];
  const isGiven = () => times.some((time) => time.value);
  if (!field.value && !isGiven()) {
    field.value = Intl.DateTimeFormat().resolvedOptions().timeZone;
    const name = field.value.split('/').at(-1).replaceAll('_', ' ');
    for (const place of form.querySelectorAll('[data-zone-name]')) place.textContent = name;
  }
  const zone = field.value;
  form.addEventListener('submit', () => {
    field.value = isGiven() ? zone : '';
  }, { capture: true });
}
