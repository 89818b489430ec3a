// Dialogs. The browser's own <dialog> keeps the focus inside, closes on Escape and gives it back.
//
//   <button data-modal-open="id">       opens the dialog with that id
//   <button data-modal-close>           closes the dialog it stands in
//   <form data-confirm="Question?">     asks before it is sent; data-confirm-action names the button,
//                                       data-confirm-kind="primary" where nothing is lost
//
// Once the answer is yes, the form carries confirmed=yes. Without scripts the server asks instead.

export function startModals() {
  document.addEventListener('click', (event) => {
    const opener = event.target.closest?.('[data-modal-open]');
    if (opener) document.getElementById(opener.dataset.modalOpen)?.showModal();
    const closer = event.target.closest?.('[data-modal-close]');
    if (closer) closer.closest('dialog')?.close();
    if (event.target instanceof HTMLDialogElement && isOutside(event)) event.target.close();
  });

  document.addEventListener('submit', async (event) => {
    const { form, question } = questionOf(event);
    if (!question || form.elements.confirmed?.value === 'yes') return;
    event.preventDefault();
    const submitter = event.submitter;
    const title = submitter?.dataset.confirmAction || form.dataset.confirmAction || submitter?.textContent.trim();
    const kind = submitter?.dataset.confirmKind || form.dataset.confirmKind || 'danger';
    if (!(await ask({ title, text: question, action: title, kind }))) return;
    const answer = hidden('confirmed', 'yes');
    form.append(answer);
    form.requestSubmit(submitter);
    answer.remove();
  }, { capture: true });
}

// Asks in a dialog; resolves to whether the answer was yes.
function ask({ title, text, action = 'Continue', kind = 'danger' }) {
  const dialog = document.getElementById('confirm-dialog');
  const yes = dialog.querySelector('[data-confirm-yes]');
  dialog.querySelector('#confirm-title').textContent = title;
  dialog.querySelector('[data-confirm-text]').textContent = text;
  yes.textContent = action;
  yes.className = `btn btn-${kind}`;
  return new Promise((resolve) => {
    const accept = () => dialog.close('yes');
    yes.addEventListener('click', accept);
    dialog.addEventListener('close', () => {
      yes.removeEventListener('click', accept);
      resolve(dialog.returnValue === 'yes');
    }, { once: true });
    dialog.returnValue = '';
    dialog.showModal();
  });
}

// The button that sends may ask its own question; so one form can hold several actions.
function questionOf(event) {
  const form = event.target;
  return { form, question: event.submitter?.dataset.confirm || form.dataset.confirm };
}

function isOutside({ target, clientX, clientY }) {
  const box = target.getBoundingClientRect();
  return clientX < box.left || clientX > box.right || clientY < box.top || clientY > box.bottom;
}

function hidden(name, value) {
  const input = document.createElement('input');
  input.type = 'hidden';
  input.name = name;
  input.value = value;
  return input;
}
