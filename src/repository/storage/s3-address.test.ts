/**
 * Addresses of object stores: what is understood, what is refused, and that no secret is ever repeated.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Failure } from '../../base/failure.ts'
import { isS3Location, parseS3Address, s3AddressText } from './s3-address.ts'

test('an address is taken apart, and put together again as it was', () => {
  const endpoint = 'http://store.example:7480'
  const addresses = [
    ['s3://bucket', { bucket: 'bucket', prefix: '', pathStyle: false }],
    ['s3://bucket/a/b', { bucket: 'bucket', prefix: 'a/b', pathStyle: false }],
    ['s3://bucket/a?region=eu-west-1', { bucket: 'bucket', prefix: 'a', region: 'eu-west-1', pathStyle: false }],
    [`s3://bucket/a?endpoint=${endpoint}`, { bucket: 'bucket', prefix: 'a', endpoint, pathStyle: true }],
    [
      `s3://bucket?endpoint=${endpoint}&region=x&path-style=false`,
      { bucket: 'bucket', prefix: '', endpoint, region: 'x', pathStyle: false },
    ],
    ['s3://bucket?path-style=true', { bucket: 'bucket', prefix: '', pathStyle: true }],
  ] as const
  for (const [text, address] of addresses) {
    assert.deepEqual(parseS3Address(text), address)
    assert.equal(s3AddressText(address), text)
  }
  assert.equal(parseS3Address('s3://bucket/a/?endpoint=HTTPS%3A%2F%2FHost%2F').endpoint, 'https://host')
  assert.equal(parseS3Address('S3://bucket/a/').prefix, 'a')
})

test('a directory is no address', () => {
  for (const location of ['/srv/backup', 's3', './s3:/x', 's3:/bucket']) assert.ok(!isS3Location(location))
  assert.ok(isS3Location('s3://bucket'))
})

test('what is not an address is refused, and credentials are never repeated', () => {
  const wrong = [
    's3://',
    's3://b',
    's3:///a',
    's3://bucket//a',
    's3://bucket/../a',
    's3://bucket/a b',
    's3://bucket/a?endpoint=ftp://x',
    's3://bucket/a?endpoint=http://x/path',
    's3://bucket/a?endpoint=x:80',
    's3://bucket/a?endpoint=http://a&endpoint=http://b',
    's3://bucket/a?region=a b',
    's3://bucket/a?path-style=yes',
    's3://bucket/a?hidden=hidden',
    's3://bucket/a#hidden',
    's3://bucket/a?x?y',
    's3://AKIA:hidden@bucket/a',
    's3://AKIA:hid/den@bucket/a',
    's3://bucket/a?endpoint=http://AKIA:hidden@host',
    's3://bucket/a?hidden',
  ]
  for (const location of wrong) {
    assert.throws(
      () => parseS3Address(location),
      (error) => error instanceof Failure && error.code === 'USAGE' && !/hid|AKIA/.test(error.message + error.hint),
      location,
    )
  }
  assert.throws(() => parseS3Address('s3://AKIA:hidden@bucket/a'), /credentials do not belong there/)
})
