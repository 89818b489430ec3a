// Calls to the server. JSON for /api/v1; every failure is an ApiError with a text for people.

const TIMEOUT_SECONDS = 15;

export class ApiError extends Error {
  // problem: the members of the problem+json answer. status 0: there was no answer.
  constructor(status, problem) {
    super(problem.detail || problem.title || 'The request failed.');
    this.name = 'ApiError';
    this.status = status;
    this.code = problem.code;
    this.requestId = problem.request_id;
    this.errors = problem.errors ?? [];
    this.problem = problem;
  }

  get isUnreachable() {
    return this.status === 0;
  }
}

export const api = {
  get: (path, options) => call('GET', path, undefined, options),
  post: (path, body = {}, options) => call('POST', path, body, options),
  put: (path, body = {}, options) => call('PUT', path, body, options),
  delete: (path, options) => call('DELETE', path, undefined, options),
};

// Fetches with a deadline; signal: the caller's own way to give up.
export async function request(path, { seconds = TIMEOUT_SECONDS, signal, ...options } = {}) {
  const deadline = AbortSignal.timeout(seconds * 1000);
  try {
    return await fetch(path, {
      credentials: 'same-origin',
      ...options,
      signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    const code = deadline.aborted ? 'timeout' : 'unreachable';
    const detail = deadline.aborted ? 'The server did not answer in time.' : 'The server cannot be reached.';
    throw new ApiError(0, { code, detail });
  }
}

export function csrfToken() {
  return document.querySelector('meta[name="csrf-token"]')?.content ?? '';
}

async function call(method, path, body, options = {}) {
  const response = await request(path, {
    ...options,
    method,
    headers: {
      Accept: 'application/json',
      'X-CSRFToken': csrfToken(),
      ...(body === undefined ? {} : { 'Content-Type': 'application/json' }),
      ...options.headers,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const answer = await readJson(response);
  if (!response.ok) throw new ApiError(response.status, answer ?? { title: response.statusText });
  return answer;
}

async function readJson(response) {
  if (!/json/.test(response.headers.get('Content-Type') ?? '')) return null;
  try {
    return await response.json();
  } catch {
    return null;
  }
}
