// Where class names are looked for, and the scales of the design.
// Colours are in app/static/src/tokens.css, because each has a value for light and one for dark.
const color = (name) => `var(--${name})`;

module.exports = {
  content: ['./app/templates/**/*.html', './app/static/src/**/*.js', './app/static/js/*.js'],
  theme: {
    fontFamily: {
      sans: ['Inter', 'system-ui', '-apple-system', 'Segoe UI', 'Roboto', 'Helvetica Neue', 'Arial', 'sans-serif'],
      mono: ['ui-monospace', 'SF Mono', 'SFMono-Regular', 'Menlo', 'Cascadia Mono', 'Consolas', 'Liberation Mono', 'monospace'],
    },
    fontSize: {
      xs: ['0.75rem', { lineHeight: '1rem' }],
      sm: ['0.8125rem', { lineHeight: '1.25rem' }],
      base: ['0.875rem', { lineHeight: '1.375rem' }],
      lg: ['1rem', { lineHeight: '1.5rem' }],
      xl: ['1.25rem', { lineHeight: '1.75rem', letterSpacing: '-0.015em' }],
      '2xl': ['1.5rem', { lineHeight: '2rem', letterSpacing: '-0.02em' }],
      '3xl': ['1.875rem', { lineHeight: '2.25rem', letterSpacing: '-0.025em' }],
    },
    extend: {
      colors: {
        canvas: color('canvas'),
        surface: color('surface'),
        raised: color('raised'),
        sunken: color('sunken'),
        line: color('line'),
        'line-strong': color('line-strong'),
        ink: color('ink'),
        soft: color('ink-soft'),
        muted: color('ink-muted'),
        accent: color('accent'),
        'accent-ink': color('accent-ink'),
        pending: color('pending-ink'),
        progress: color('progress-ink'),
        completed: color('completed-ink'),
        failed: color('failed-ink'),
        tsq: color('tsq-ink'),
        cancelled: color('cancelled-ink'),
      },
      maxWidth: { page: '90rem', prose: '42rem' },
    },
  },
};
