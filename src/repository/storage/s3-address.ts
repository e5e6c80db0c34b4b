/**
 * S3Address: `s3://bucket/prefix?endpoint=https://host:port&region=NAME&path-style=true`, taken apart and put together.
 * It never holds credentials: those come from the environment or from the AWS files, see docs/s3.md.
 */
import { failure } from '../../errors.ts'
import { isObjectKey } from './backend.ts'

export interface S3Address {
  readonly bucket: string
  /** In front of every key, without a slash at either end; empty for the whole bucket. */
  readonly prefix: string
  /** Scheme, host and port of a store that is not AWS. */
  readonly endpoint?: string
  readonly region?: string
  /** The bucket in the path instead of in the host's name. */
  readonly pathStyle: boolean
}

const scheme = 's3://'

/** True for what `parseS3Address` is for; anything else is a directory. */
export function isS3Location(location: string): boolean {
  return location.toLowerCase().startsWith(scheme)
}

/** USAGE. What is wrong is never repeated where it could be a secret. */
export function parseS3Address(location: string): S3Address {
  const [place = '', query = '', ...more] = location.slice(scheme.length).split('?')
  if (/@/.test(place)) throw refuse(noCredentials)
  if (more.length > 0 || location.includes('#')) throw refuse('it has more than one ?, or a #')
  const [bucket = '', ...rest] = place.split('/')
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]$/.test(bucket)) throw refuse('what follows s3:// is no bucket')
  const prefix = rest.join('/').replace(/\/$/, '')
  if (prefix !== '' && !isObjectKey(prefix)) {
    throw refuse(
      'its prefix is not made of letters, digits, dots, hyphens and underscores between slashes, 200 at most',
    )
  }
  return { bucket, prefix, ...parseQuery(query) }
}

function parseQuery(query: string): Omit<S3Address, 'bucket' | 'prefix'> {
  const values = new Map<string, string>()
  for (const [name, value] of new URLSearchParams(query)) {
    if (!['endpoint', 'region', 'path-style'].includes(name)) {
      throw refuse('behind the ? only endpoint=, region= and path-style= are known')
    }
    if (values.has(name)) throw refuse(`it says ${name}= twice`)
    values.set(name, value)
  }
  const endpoint = parseEndpoint(values.get('endpoint'))
  const region = values.get('region')
  if (region !== undefined && !/^[A-Za-z0-9-]{1,64}$/.test(region)) throw refuse('its region= is no name of a region')
  const style = values.get('path-style')
  if (style !== undefined && style !== 'true' && style !== 'false') throw refuse('its path-style= is not true or false')
  return {
    ...(endpoint === undefined ? {} : { endpoint }),
    ...(region === undefined ? {} : { region }),
    pathStyle: style === undefined ? endpoint !== undefined : style === 'true',
  }
}

function parseEndpoint(text: string | undefined): string | undefined {
  if (text === undefined) return undefined
  if (text.includes('@')) throw refuse(noCredentials)
  const url = URL.parse(text)
  if (url === null || (url.protocol !== 'http:' && url.protocol !== 'https:')) {
    throw refuse('its endpoint= is not http://host:port or https://host:port')
  }
  if (url.pathname !== '/' || url.search !== '') throw refuse('its endpoint= has more than a host and a port')
  return url.origin
}

const noCredentials =
  'credentials do not belong there; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use ~/.aws/credentials'

const refuse = (reason: string) => failure('USAGE', { reason: `the s3:// address of the repository: ${reason}` })

/** The one way to write an address: what `parseS3Address` reads, and what an operator is shown. */
export function s3AddressText({ bucket, prefix, endpoint, region, pathStyle }: S3Address): string {
  const isUsualStyle = pathStyle === (endpoint !== undefined)
  const query = [
    ...(endpoint === undefined ? [] : [`endpoint=${endpoint}`]),
    ...(region === undefined ? [] : [`region=${region}`]),
    ...(isUsualStyle ? [] : [`path-style=${pathStyle}`]),
  ]
  const place = prefix === '' ? bucket : `${bucket}/${prefix}`
  return `${scheme}${place}${query.length === 0 ? '' : `?${query.join('&')}`}`
}
