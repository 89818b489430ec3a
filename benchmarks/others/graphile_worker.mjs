// graphile-worker at work, in an environment of its own: setup, send, work.
import { createRequire } from 'node:module';

const require = createRequire(`${process.cwd()}/`);
const { makeWorkerUtils, run, runMigrations } = require('graphile-worker');
const { Pool } = require('pg');

const [action, url, text] = process.argv.slice(2);
const count = Number(text);
// Its best settings: jobs pulled in batches into a local queue, and completed in batches.
const preset = {
  worker: {
    concurrentJobs: 24,
    maxPoolSize: 10,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
  },
};
const host = new URLSearchParams(url.split('?')[1] ?? '');
const pgPool = new Pool({
  host: host.get('host') ?? undefined,
  port: Number(host.get('port') ?? 5432),
  user: 'postgres',
  database: url.split('?')[0].split('/').pop(),
  max: 10,
});
pgPool.on('error', () => {});
pgPool.on('connect', (client) => client.on('error', () => {}));

if (action === 'work') {
  const logger = new (require('graphile-worker').Logger)(() => () => {});
  await run({ pgPool, preset, logger, taskList: { noop: async () => {} } });
} else {
  if (action === 'setup') await runMigrations({ pgPool });
  const utils = await makeWorkerUtils({ pgPool });
  for (let n = 0; action === 'single' && n < count; n += 1) await utils.addJob('noop', { n });
  for (let start = 0; action === 'send' && start < count; start += 1000) {
    const size = Math.min(1000, count - start);
    await utils.addJobs(Array.from({ length: size }, (_, n) => ({ identifier: 'noop', payload: { n } })));
  }
  await utils.release();
  await pgPool.end();
}
