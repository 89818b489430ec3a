// Selecting rows: single ones, the page, everything that the filter matches.
//
//   <form data-select data-select-total="1234"    around table and buttons; the total is of the filter
//     data-select-total-text="1,234"              how it is said
//     data-select-total-is="exact">               or "bound": there are so many at least
//     <input type="checkbox" data-select-page>    in the head: all rows of the page
//     <input type="checkbox" data-select-row name="command_ids" value="…">
//     <div class="select-bar" data-select-bar>    seen while something is selected
//       <span data-select-count></span>           "3 selected"
//       <button data-select-all>, <button data-select-none>
//     <input type="hidden" name="scope" value="ids" data-select-scope>   "filter" for everything
//
// A selected row that leaves the page is no longer selected: nobody acts on what they cannot see.
// The form gets the event `select:changed` with { ids, everything }.

// What the filter matches may have changed; the bar says so with the next refresh of the rows.
export function setTotal(form, total, text, kind) {
  form.dataset.selectTotal = total;
  form.dataset.selectTotalText = text;
  form.dataset.selectTotalIs = kind;
  form.dispatchEvent(new CustomEvent('select:total'));
}

export function startSelections() {
  for (const form of document.querySelectorAll('[data-select]')) new Selection(form);
}

class Selection {
  constructor(form) {
    this.form = form;
    this.ids = new Set();
    this.everything = false;
    this.lastRow = null;
    form.addEventListener('click', (event) => this.#clicked(event));
    form.addEventListener('change', (event) => this.#changed(event.target));
    form.addEventListener('live:updated', () => this.#restore());
    form.addEventListener('select:total', () => this.#show());
    this.#read();
  }

  get rows() {
    return [...this.form.querySelectorAll('[data-select-row]')];
  }

  get total() {
    return Number(this.form.dataset.selectTotal) || this.rows.length;
  }

  #clicked(event) {
    const row = event.target.closest('[data-select-row]');
    if (row) {
      if (event.shiftKey && this.lastRow?.isConnected) this.#selectBetween(this.lastRow, row);
      this.lastRow = row;
    }
    if (event.target.closest('[data-select-all]')) this.#set(true, true);
    if (event.target.closest('[data-select-none]')) this.#set(false, false);
  }

  #changed(target) {
    if (target.matches('[data-select-page]')) this.#set(target.checked, false);
    else if (target.matches('[data-select-row]')) {
      this.everything = false;
      this.#read();
    }
  }

  #selectBetween(first, last) {
    const rows = this.rows;
    const [start, end] = [rows.indexOf(first), rows.indexOf(last)].sort((a, b) => a - b);
    for (const row of rows.slice(start, end + 1)) row.checked = last.checked;
  }

  #set(checked, everything) {
    for (const row of this.rows) row.checked = checked;
    this.everything = everything;
    this.#read();
  }

  #read() {
    this.ids = new Set(this.rows.filter((row) => row.checked).map((row) => row.value));
    this.#show();
  }

  // A refresh may have brought other rows; those that stayed are selected as before.
  #restore() {
    for (const row of this.rows) row.checked = this.everything || this.ids.has(row.value);
    this.#read();
  }

  #show() {
    const { form, ids, everything, rows, total } = this;
    const page = form.querySelector('[data-select-page]');
    if (page) {
      page.checked = rows.length > 0 && ids.size === rows.length;
      page.indeterminate = ids.size > 0 && ids.size < rows.length;
    }
    const scope = form.querySelector('[data-select-scope]');
    if (scope) scope.value = everything ? 'filter' : 'ids';
    const bar = form.querySelector('[data-select-bar]');
    bar?.toggleAttribute('data-shown', ids.size > 0 || everything);
    const { selectTotalText: text = total.toLocaleString('en'), selectTotalIs: kind } = form.dataset;
    const isBound = kind === 'bound';
    const selected = isBound ? `All that match selected (${text})` : `${text} selected`;
    const count = everything ? selected : `${ids.size.toLocaleString('en')} selected`;
    for (const place of form.querySelectorAll('[data-select-count]')) place.textContent = count;
    const all = form.querySelector('[data-select-all]');
    if (all) {
      all.textContent = isBound ? `Select all that match (${text})` : `Select all ${text} that match`;
      all.hidden = everything || ids.size < rows.length || (total <= rows.length && !isBound);
    }
    form.dispatchEvent(new CustomEvent('select:changed', { detail: { ids: [...ids], everything }, bubbles: true }));
  }
}
