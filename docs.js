// Everything is same-origin and nothing is inline, so the page runs under a strict content security policy.
SwaggerUIBundle({
  url: '/openapi.json',
  dom_id: '#swagger-ui',
  deepLinking: true,
  validatorUrl: null,
  defaultModelsExpandDepth: 0,
  persistAuthorization: false,
}).initOAuth({ clientId: 'roster' });
