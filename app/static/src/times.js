// Times in the viewer's zone. The markup keeps UTC in `datetime` and in `title`.
//
//   <time data-time="absolute">  31 Jan, 14:02:10       (with the year where it is another one)
//   <time data-time="relative">  3 s ago, in 10 s       ticks
//   <time data-time="elapsed">   1 min 12 s             ticks
//   <time data-time="clock">     14:02:10

const UNITS = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]];

const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
// The pages speak English, so the months do; and the server writes the same, in UTC.
const day = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' });
const dayAndYear = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short', year: 'numeric' });

export function startTimes() {
  formatTimes(document);
  document.addEventListener('live:updated', (event) => formatTimes(event.target));
  setInterval(() => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll('time[data-time="relative"], time[data-time="elapsed"]')) format(element);
  }, 1000);
}

function formatTimes(root) {
  for (const element of root.querySelectorAll('time[data-time]')) format(element);
}

function format(element) {
  const moment = new Date(element.dateTime);
  if (Number.isNaN(moment.getTime())) return;
  const text = FORMATS[element.dataset.time]?.(moment);
  if (text && element.textContent !== text) element.textContent = text;
}

const FORMATS = {
  absolute: (moment) => `${(isThisYear(moment) ? day : dayAndYear).format(moment)}, ${clock.format(moment)}`,
  clock: (moment) => clock.format(moment),
  relative: (moment) => {
    const seconds = Math.round((now() - moment) / 1000);
    if (Math.abs(seconds) < 1) return 'now';
    return seconds > 0 ? `${span(seconds)} ago` : `in ${span(-seconds)}`;
  },
  elapsed: (moment) => {
    const seconds = Math.max(0, Math.floor((now() - moment) / 1000));
    const place = UNITS.findIndex(([, length]) => seconds >= length);
    const [next, size] = UNITS[place + 1] ?? [];
    const rest = place >= 0 && size ? Math.floor((seconds % UNITS[place][1]) / size) : 0;
    return rest ? `${span(seconds)} ${rest} ${next}` : span(seconds);
  },
};

// The largest unit alone: an age is read at a glance.
export function span(seconds) {
  const [unit, size] = UNITS.find(([, length]) => seconds >= length) ?? UNITS.at(-1);
  return `${Math.floor(seconds / size)} ${unit}`;
}

// The server's clock: the viewer's may be wrong, and ages would be too.
let offset = 0;

export function setServerTime(dateHeader) {
  const server = Date.parse(dateHeader ?? '');
  // The header counts whole seconds, so smaller differences say nothing.
  if (server && Math.abs(server - Date.now()) > 2000) offset = server - Date.now();
}

function now() {
  return Date.now() + offset;
}

function isThisYear(moment) {
  return moment.getFullYear() === new Date().getFullYear();
}
