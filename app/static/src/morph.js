// Turns one tree into another with as few changes as possible, so that focus, selection, typed
// text, scroll positions and open details survive a refresh.
//
// Elements with an id are matched by it, others by their place and name. What has data-live-keep is
// left alone. A field that the person has changed keeps its value.

export function morph(from, to) {
  morphAttributes(from, to);
  morphChildren(from, to);
}

function morphChildren(from, to) {
  const byId = new Map();
  for (const child of from.children) if (child.id) byId.set(child.id, child);

  const wantedIds = new Set([...to.children].map((child) => child.id));

  let current = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    // What is gone goes first, so that what stays need not move: moving loses the focus.
    while (current?.id && !wantedIds.has(current.id)) current = removed(current);
    const match = matchFor(wanted, current, byId);
    if (!match) {
      from.insertBefore(document.importNode(wanted, true), current);
      continue;
    }
    if (match !== current) move(from, match, current);
    else current = current.nextSibling;
    morphNode(match, wanted);
  }
  while (current) current = removed(current);
}

// Takes the node away and gives the one after it.
function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

function move(parent, node, before) {
  if (parent.moveBefore) parent.moveBefore(node, before); // keeps the focus, where browsers have it
  else parent.insertBefore(node, before);
}

function matchFor(wanted, current, byId) {
  if (wanted.id) {
    const match = byId.get(wanted.id);
    return match?.nodeName === wanted.nodeName ? match : null;
  }
  return current && !current.id && current.nodeName === wanted.nodeName ? current : null;
}

function morphNode(from, to) {
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
    return;
  }
  if (from.hasAttribute('data-live-keep')) return;
  // times.js has formatted the text; the same moment needs no other.
  if (from.localName === 'time' && from.dateTime === to.dateTime) return;
  if (from.isEqualNode(to)) return;
  morphAttributes(from, to);
  if (from.matches('input, textarea, select')) morphField(from, to);
  if (from.localName !== 'textarea') morphChildren(from, to);
}

function morphAttributes(from, to) {
  for (const { name, value } of to.attributes) {
    if (!isOurs(from, name) && from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  for (const { name } of [...from.attributes]) {
    if (!isOurs(from, name) && !to.hasAttribute(name)) from.removeAttribute(name);
  }
}

// What the person or a script has done to an element since it came.
function isOurs(element, name) {
  if (name === 'open') return element.localName === 'details' || element.localName === 'dialog';
  if (name === 'style' || name.startsWith('data-live')) return true;
  return name === 'data-state' && element.hasAttribute('data-chart');
}

function morphField(from, to) {
  if (from.type === 'checkbox' || from.type === 'radio') {
    const touched = from.checked !== from.defaultChecked;
    from.defaultChecked = to.defaultChecked;
    if (!touched) from.checked = to.checked;
  } else if (from.localName !== 'select') {
    const touched = from.value !== from.defaultValue || from === document.activeElement;
    const typed = from.value;
    from.defaultValue = to.defaultValue;
    from.value = touched ? typed : to.defaultValue;
  }
}
