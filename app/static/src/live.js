// Parts of the page that follow the server by themselves.
//
//   <div id="…" data-live-src="/?partial=…">   is fetched anew and merged in, see morph.js
//   data-live-interval="1"                     seconds between two refreshes; 5 without it. The answer
//                                              may change it: its first element's data-live-next
//   data-live-announce                         inside: text to read aloud when it changes
//
// The part's element gets the event `live:updated`. Refreshing stops in a hidden tab and while text
// inside is selected, slows down while the server is away, and says so.

import { ApiError, request } from './api.js';
import { morph } from './morph.js';
import { announce } from './page.js';
import { setServerTime, span } from './times.js';

const DEFAULT_SECONDS = 5;
const SLOWEST_SECONDS = 30;
const FAILURES_UNTIL_AWAY = 2;
// A server that hangs fails slowly: then the age of what is shown decides.
const AWAY_SECONDS = 15;

const regions = [];
let lastSuccess = Date.now();

class Region {
  constructor(element) {
    this.element = element;
    this.failures = 0;
    this.etag = null;
    this.timer = null;
    this.running = null;
    this.schedule();
  }

  get seconds() {
    const wanted = Number(this.element.dataset.liveInterval) || DEFAULT_SECONDS;
    return this.failures ? Math.min(wanted * 2 ** this.failures, SLOWEST_SECONDS) : wanted;
  }

  schedule() {
    clearTimeout(this.timer);
    if (this.element.isConnected) this.timer = setTimeout(() => this.refresh(), this.seconds * 1000);
  }

  refresh() {
    this.running ??= this.#refresh().finally(() => {
      this.running = null;
      this.schedule();
    });
    return this.running;
  }

  async #refresh() {
    if (document.hidden || isSignedOut) return;
    try {
      const headers = { Accept: 'text/html', ...(this.etag ? { 'If-None-Match': this.etag } : {}) };
      const response = await request(this.element.dataset.liveSrc, { headers, seconds: 10, cache: 'no-store' });
      if (response.status === 401) isSignedOut = true;
      if (response.status !== 304 && !response.ok) throw new ApiError(response.status, { detail: response.headers.get('X-Problem'), title: response.statusText });
      setServerTime(response.headers.get('Date'));
      if (response.status !== 304) {
        const html = await response.text();
        // The next answer brings it in; nobody loses the text they are about to copy.
        if (hasSelectionIn(this.element)) return;
        this.etag = response.headers.get('ETag');
        this.#show(html);
      }
      this.failures = 0;
      lastSuccess = Date.now();
    } catch (error) {
      if (!(error instanceof ApiError)) console.error(error);
      this.failures += 1;
      this.fault = faultOf(error);
    }
    showState();
  }

  #show(html) {
    const spoken = spokenIn(this.element);
    const focused = this.element.contains(document.activeElement);
    const next = document.createElement(this.element.localName);
    next.innerHTML = html;
    // Only what is inside comes anew; the attributes of the part itself are the page's.
    for (const { name, value } of this.element.attributes) next.setAttribute(name, value);
    morph(this.element, next);
    if (focused && !this.element.contains(document.activeElement)) {
      this.element.tabIndex = -1;
      this.element.focus({ preventScroll: true });
    }
    const interval = this.element.firstElementChild?.dataset.liveNext;
    if (interval) this.element.dataset.liveInterval = interval;
    this.element.dispatchEvent(new CustomEvent('live:updated', { bubbles: true }));
    const now = spokenIn(this.element);
    if (now !== spoken) announce(now);
  }
}

export function startLive() {
  for (const element of document.querySelectorAll('[data-live-src]')) regions.push(new Region(element));
  if (regions.length === 0) return;
  document.getElementById('live').hidden = false;
  document.querySelector('[data-live-refresh]').addEventListener('click', () => refreshAll());
  document.addEventListener('visibilitychange', () => {
    if (document.hidden) showState();
    else refreshAll();
  });
  window.addEventListener('online', () => refreshAll());
  setInterval(showState, 1000);
  showState();
}

// Refreshes everything now; without live parts, loads the page anew.
export function refreshAll() {
  if (regions.length === 0) location.reload();
  return Promise.all(regions.map((region) => region.refresh()));
}

// Refreshes the live part with this id now, for instance after an action.
export function refresh(id) {
  return regions.find((region) => region.element.id === id)?.refresh();
}

let wasAway = false;
let isSignedOut = false;

function showState() {
  const indicator = document.getElementById('live');
  const age = Math.floor((Date.now() - lastSuccess) / 1000);
  const least = age < AWAY_SECONDS ? FAILURES_UNTIL_AWAY : 1;
  const failing = regions.find((region) => region.failures >= least);
  const isAway = isSignedOut || failing !== undefined;
  const text = age < 2 ? 'Updated just now' : `Updated ${span(age)} ago`;
  indicator.dataset.state = isAway ? 'away' : document.hidden ? 'paused' : 'live';
  setText(indicator.querySelector('[data-live-age]'), text);

  const notice = document.getElementById('away');
  const reason = isSignedOut ? 'Your session has ended. Reload the page to sign in again.' : `${failing?.fault} This page is out of date.`;
  if (isAway) setText(notice.querySelector('[data-away-text]'), reason);
  notice.hidden = !isAway;
  if (wasAway && !isAway) announce('The server is back.');
  wasAway = isAway;
}

function faultOf(error) {
  if (error.status === 503) return error.problem.detail ?? 'The database cannot be reached.';
  if (error.status === 504) return 'The database does not answer.';
  if (error.status > 0) return 'The server answers with an error.';
  return error.code === 'timeout' ? 'The server does not answer.' : 'The server cannot be reached.';
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function spokenIn(element) {
  return [...element.querySelectorAll('[data-live-announce]')].map((part) => part.textContent.trim()).join(' ');
}

function hasSelectionIn(element) {
  const selection = getSelection();
  return !selection.isCollapsed && selection.rangeCount > 0 && selection.getRangeAt(0).intersectsNode(element);
}
